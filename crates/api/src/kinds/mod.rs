//! The table of kinds: every resource the server knows, as data.
//!
//! A row says what a resource is called, which verbs and subresources it has, where its objects are stored and how
//! durably. The built-in rows are `table.txt`, those of prereleases `prerelease.txt`; custom resources add rows at run time by making a new
//! [`KindTable`] (readers hold the old one until they look again), so no consumer may assume a fixed set.
//! Two resources may share storage: core and `events.k8s.io` Events, or both versions of the horizontal pod
//! autoscaler; they differ in schema type and share [`Kind::storage_prefix`].

use std::cmp::Ordering;
use std::sync::{Arc, LazyLock};

use crate::custom::Definition;
use crate::schema::Shape;

/// How durable a write must be before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On disk.
    Disk,
    /// In memory; lost by a crash at most seconds old. For Events and Leases.
    Memory,
}

/// A group, version and kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupVersionKind {
    /// The API group, empty for core.
    pub group: String,
    /// The version within the group.
    pub version: String,
    /// The kind.
    pub kind: String,
}

impl GroupVersionKind {
    /// `group/version`, or the version alone for core.
    pub fn api_version(&self) -> String {
        join(&self.group, &self.version)
    }
}

/// A subresource of a resource, for example `status` or `scale`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subresource {
    /// The last path segment.
    pub name: String,
    /// What the subresource takes and answers.
    pub kind: GroupVersionKind,
    /// Whether discovery names group and version of that kind (it does not where they are the resource's own).
    pub foreign_kind: bool,
    /// Verbs as discovery lists them (sorted); connects count as `get`, `create`, ….
    pub verbs: Vec<&'static str>,
    /// The schema descriptor's type of the body; none for options that come as query parameters.
    pub type_name: Option<String>,
}

/// One resource of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kind {
    /// The API group, empty for core.
    pub group: String,
    /// The version within the group.
    pub version: String,
    /// For example `Deployment`.
    pub kind: String,
    /// The resource's name in paths, for example `deployments`.
    pub plural: String,
    /// For example `deployment`.
    pub singular: String,
    /// For example `DeploymentList`.
    pub list_kind: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Verbs as discovery lists them (sorted).
    pub verbs: Vec<&'static str>,
    /// For example `deploy`.
    pub short_names: Vec<String>,
    /// For example `all`.
    pub categories: Vec<String>,
    /// Sorted by name.
    pub subresources: Vec<Subresource>,
    /// The schema descriptor's type, for example `io.k8s.api.apps.v1.Deployment`; empty for custom resources, whose schema
    /// comes with their definition.
    pub type_name: String,
    /// Where objects are stored: `/registry/<group or core>/<plural>/`; empty where nothing is stored (reviews, bindings).
    pub storage_prefix: String,
    /// The `apiVersion` objects are stored in.
    pub storage_version: String,
    /// Discovery's storage version hash; empty where nothing is stored.
    pub storage_hash: String,
    /// How durable its writes are.
    pub durability: Durability,
    /// Whether DELETE answers with the object instead of a Status.
    pub delete_answers_object: bool,
    /// What a custom resource's definition says; none for built-in resources.
    pub definition: Option<Arc<Definition>>,
}

impl Kind {
    /// `group/version`, or the version alone for core: what objects carry as `apiVersion`.
    pub fn api_version(&self) -> String {
        join(&self.group, &self.version)
    }

    /// `plural.group`, or the plural alone for core: how messages name the resource.
    pub fn resource(&self) -> String {
        match self.group.as_str() {
            "" => self.plural.clone(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// `Kind.group`, or the kind alone for core: how validation messages name it.
    pub fn qualified_kind(&self) -> String {
        match self.group.as_str() {
            "" => self.kind.clone(),
            group => format!("{}.{group}", self.kind),
        }
    }

    /// Whether the resource itself has this verb.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// The subresource of this name.
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// The shape of its objects.
    pub fn shape(&self) -> Shape<'_> {
        match &self.definition {
            Some(definition) => definition.own().shape(),
            None => crate::schema::root(&self.type_name),
        }
    }

    /// The shape that bodies are decoded by. What a custom resource's schema demands beyond metadata is a matter of
    /// validation, not of decoding.
    pub fn body_shape(&self) -> Shape<'static> {
        match &self.definition {
            Some(_) => crate::structural::envelope(),
            None => crate::schema::root(&self.type_name),
        }
    }

    /// Whether its objects can be told in protobuf.
    pub fn has_messages(&self) -> bool {
        self.definition.is_none() && crate::codec::has_messages(self.shape())
    }

    /// Whether it is a custom resource whose definition is being deleted.
    pub fn is_terminating(&self) -> bool {
        self.definition.as_ref().is_some_and(|definition| definition.family().is_terminating)
    }

    /// Whether requests with this verb are answered: all that discovery lists, and changes of a custom resource
    /// whose definition is being deleted (finalizers must be able to go).
    pub fn takes_verb(&self, verb: &str) -> bool {
        self.has_verb(verb) || matches!(verb, "update" | "patch") && self.is_terminating()
    }

    /// Whether objects of it are stored at all.
    pub fn is_stored(&self) -> bool {
        !self.storage_prefix.is_empty()
    }

    /// The storage key of an object; an empty namespace for cluster scope.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        match namespace {
            "" => format!("{}{name}", self.storage_prefix),
            namespace => format!("{}{namespace}/{name}", self.storage_prefix),
        }
    }
}

/// A group as discovery lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The group's name, empty for core.
    pub name: String,
    /// Versions, the preferred one first.
    pub versions: Vec<String>,
}

/// An immutable set of resources with lookups. The order of rows is the order of discovery.
#[derive(Debug, Clone, Default)]
pub struct KindTable {
    rows: Vec<Arc<Kind>>,
    by_plural: Vec<u32>,
    by_kind: Vec<u32>,
}

impl KindTable {
    /// A table of these rows, in their order. Where two rows have the same name, the first wins.
    pub fn new(rows: Vec<Arc<Kind>>) -> Self {
        let index = |key: for<'a> fn(&'a Kind) -> [&'a str; 3]| {
            let mut index: Vec<u32> = (0..rows.len() as u32).collect();
            index.sort_by(|a, b| key(&rows[*a as usize]).cmp(&key(&rows[*b as usize])));
            index.dedup_by(|a, b| key(&rows[*a as usize]) == key(&rows[*b as usize]));
            index
        };
        Self { by_plural: index(plural_key), by_kind: index(kind_key), rows }
    }

    /// A new table with more rows after these; custom resources use it.
    pub fn with(&self, more: impl IntoIterator<Item = Arc<Kind>>) -> Self {
        Self::new(self.rows.iter().cloned().chain(more).collect())
    }

    /// All rows in the order of discovery.
    pub fn all(&self) -> &[Arc<Kind>] {
        &self.rows
    }

    /// The resource of a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.look_up(&self.by_plural, plural_key, [group, version, plural])
    }

    /// The resource of a kind. For `bindings` and the like it is the top-level resource, never a subresource.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.look_up(&self.by_kind, kind_key, [group, version, kind])
    }

    /// The resource of an object's `apiVersion` and `kind`.
    pub fn of_object(&self, api_version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.by_kind(group, version, kind)
    }

    /// Groups and their versions in the order of discovery, core first.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for row in &self.rows {
            let at = match groups.iter().position(|g| g.name == row.group) {
                Some(at) => at,
                None => {
                    groups.push(Group { name: row.group.clone(), versions: Vec::new() });
                    groups.len() - 1
                }
            };
            if !groups[at].versions.contains(&row.version) {
                groups[at].versions.push(row.version.clone());
            }
        }
        groups
    }

    /// The resources of one group and version, in the order of discovery.
    pub fn of_version<'a>(&'a self, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Arc<Kind>> {
        self.rows.iter().filter(move |row| row.group == group && row.version == version)
    }

    fn look_up(
        &self,
        index: &[u32],
        key: for<'a> fn(&'a Kind) -> [&'a str; 3],
        wanted: [&str; 3],
    ) -> Option<&Arc<Kind>> {
        let at = index.binary_search_by(|i| compare(&key(&self.rows[*i as usize]), &wanted)).ok()?;
        Some(&self.rows[index[at] as usize])
    }
}

/// The built-in resources.
pub fn builtin() -> &'static KindTable {
    static TABLE: LazyLock<KindTable> = LazyLock::new(|| KindTable::new(parse(include_str!("table.txt"))));
    &TABLE
}

/// The resources of prereleases, which are served where their gate is opened.
pub fn prerelease() -> &'static [Arc<Kind>] {
    static ROWS: LazyLock<Vec<Arc<Kind>>> = LazyLock::new(|| parse(include_str!("prerelease.txt")));
    &ROWS
}

/// The built-in resources and those of prereleases of these groups.
pub fn with_prereleases(groups: &[&str]) -> KindTable {
    builtin().with(prerelease().iter().filter(|kind| groups.contains(&kind.group.as_str())).cloned())
}

/// The built-in resources and those of prereleases.
pub fn known() -> &'static KindTable {
    static TABLE: LazyLock<KindTable> = LazyLock::new(|| builtin().with(prerelease().iter().cloned()));
    &TABLE
}

/// All built-in resources in the order of discovery.
pub fn all() -> &'static [Arc<Kind>] {
    builtin().all()
}

/// The built-in resource of a path.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Arc<Kind>> {
    builtin().find(group, version, plural)
}

/// The built-in resource of a kind.
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Arc<Kind>> {
    builtin().by_kind(group, version, kind)
}

/// The built-in groups in the order of discovery, core first.
pub fn groups() -> Vec<Group> {
    builtin().groups()
}

fn plural_key(kind: &Kind) -> [&str; 3] {
    [&kind.group, &kind.version, &kind.plural]
}

fn kind_key(kind: &Kind) -> [&str; 3] {
    [&kind.group, &kind.version, &kind.kind]
}

fn compare(a: &[&str; 3], b: &[&str; 3]) -> Ordering {
    a.cmp(b)
}

fn join(group: &str, version: &str) -> String {
    match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    }
}

/// Reads `table.txt`, whose header says what the columns are. A malformed line is a build mistake that the tests of
/// this module catch, so it is skipped here rather than a panic at start.
fn parse(text: &str) -> Vec<Arc<Kind>> {
    let mut rows: Vec<Kind> = Vec::with_capacity(72);
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if line.starts_with(' ') {
            if let (Some(row), Some(sub)) = (rows.last_mut(), parse_subresource(&words)) {
                row.subresources.push(sub);
            }
        } else {
            rows.extend(parse_resource(&words));
        }
    }
    rows.into_iter().map(Arc::new).collect()
}

fn parse_resource(words: &[&str]) -> Option<Kind> {
    let &[
        gv,
        plural,
        kind,
        scope,
        verbs,
        short,
        categories,
        singular,
        key,
        stored_as,
        durability,
        answer,
        hash,
        ty,
    ] = words
    else {
        return None;
    };
    let (group, version) = gv.split_once('/')?;
    let optional = |text: &str| if text == "-" { String::new() } else { text.to_owned() };
    let list = |text: &str| text.split(',').filter(|t| *t != "-").map(str::to_owned).collect::<Vec<_>>();
    Some(Kind {
        group: core_is_empty(group),
        version: version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
        singular: singular.to_owned(),
        list_kind: format!("{kind}List"),
        namespaced: scope == "n",
        verbs: parse_verbs(verbs),
        short_names: list(short),
        categories: list(categories),
        subresources: Vec::new(),
        type_name: ty.to_owned(),
        storage_prefix: if key == "-" { String::new() } else { format!("/registry/{key}/") },
        storage_version: optional(stored_as),
        storage_hash: optional(hash),
        durability: if durability == "m" { Durability::Memory } else { Durability::Disk },
        delete_answers_object: answer == "o",
        definition: None,
    })
}

fn parse_subresource(words: &[&str]) -> Option<Subresource> {
    let &[name, kind, verbs, ty] = words else { return None };
    let own = kind.strip_prefix('=');
    let (group, rest) = own.unwrap_or(kind).split_once('/')?;
    let (version, kind) = rest.split_once('.')?;
    Some(Subresource {
        name: name.to_owned(),
        kind: GroupVersionKind {
            group: core_is_empty(group),
            version: version.to_owned(),
            kind: kind.to_owned(),
        },
        foreign_kind: own.is_none(),
        verbs: parse_verbs(verbs),
        type_name: (ty != "-").then(|| ty.to_owned()),
    })
}

fn parse_verbs(letters: &str) -> Vec<&'static str> {
    letters
        .chars()
        .filter_map(|letter| {
            Some(match letter {
                'c' => "create",
                'd' => "delete",
                'D' => "deletecollection",
                'g' => "get",
                'l' => "list",
                'p' => "patch",
                'u' => "update",
                'w' => "watch",
                _ => return None,
            })
        })
        .collect()
}

fn core_is_empty(group: &str) -> String {
    if group == "core" { String::new() } else { group.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_is_read() {
        let text = include_str!("table.txt");
        let lines =
            |sub: bool| text.lines().filter(|l| !l.starts_with('#') && l.starts_with(' ') == sub).count();
        assert_eq!(all().len(), lines(false));
        assert_eq!(all().iter().map(|k| k.subresources.len()).sum::<usize>(), lines(true));
        assert!(all().iter().all(|k| !k.verbs.is_empty()));
    }

    #[test]
    fn prereleases_are_known_and_not_built_in() {
        assert_eq!(
            prerelease().iter().map(|k| k.plural.as_str()).collect::<Vec<_>>(),
            ["devicetaintrules", "podgroups", "workloads", "storageversionmigrations"]
        );
        let some = with_prereleases(&["storagemigration.k8s.io"]);
        assert_eq!(some.all().len(), builtin().all().len() + 1);
        assert!(prerelease()[1].subresource("status").is_some());
        assert!(find("scheduling.k8s.io", "v1alpha2", "podgroups").is_none());
        let scheduling = known().groups().into_iter().find(|g| g.name == "scheduling.k8s.io").unwrap();
        assert_eq!(scheduling.versions, ["v1", "v1alpha2"]);
    }

    #[test]
    fn a_resource_is_found_by_path_and_by_kind() {
        let deployments = find("apps", "v1", "deployments").unwrap();
        assert_eq!(deployments.kind, "Deployment");
        assert_eq!(deployments.key("ns", "d"), "/registry/apps/deployments/ns/d");
        assert_eq!(deployments.subresource("scale").unwrap().kind.api_version(), "autoscaling/v1");
        assert_eq!(by_kind("", "v1", "Pod").unwrap().key("ns", "p"), "/registry/core/pods/ns/p");
        assert_eq!(builtin().of_object("apps/v1", "Deployment").unwrap(), deployments);
        assert!(find("apps", "v1", "pods").is_none());
    }

    #[test]
    fn events_share_storage_and_the_autoscaler_is_stored_as_v2() {
        let (core, new) = (find("", "v1", "events").unwrap(), find("events.k8s.io", "v1", "events").unwrap());
        assert_eq!(core.storage_prefix, new.storage_prefix);
        assert_eq!(new.storage_version, "v1");
        let hpa = find("autoscaling", "v1", "horizontalpodautoscalers").unwrap();
        assert_eq!(hpa.storage_version, "autoscaling/v2");
    }

    #[test]
    fn groups_come_in_discovery_order_with_the_preferred_version_first() {
        let groups = groups();
        assert_eq!(groups[0].name, "");
        assert_eq!(groups[1].name, "apiregistration.k8s.io");
        assert_eq!(groups.last().unwrap().name, "flowcontrol.apiserver.k8s.io");
        let autoscaling = groups.iter().find(|g| g.name == "autoscaling").unwrap();
        assert_eq!(autoscaling.versions, ["v2", "v1"]);
    }

    #[test]
    fn rows_added_at_run_time_are_found_and_come_last() {
        let mut row = (**find("", "v1", "configmaps").unwrap()).clone();
        row.group = "example.com".into();
        let table = builtin().with([Arc::new(row)]);
        assert!(table.find("example.com", "v1", "configmaps").is_some());
        assert_eq!(table.groups().last().unwrap().name, "example.com");
        assert!(builtin().find("example.com", "v1", "configmaps").is_none());
    }
}

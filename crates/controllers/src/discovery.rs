//! What kinds the server serves: for controllers that treat every kind alike, custom resources included.
use client::{Client, Error, path_of};
use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResourceList};

/// One served kind in its group's preferred version.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Served {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    pub(crate) kind: String,
    pub(crate) namespaced: bool,
    pub(crate) verbs: Vec<String>,
}

impl Served {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    /// `v1`, `apps/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The URL path of the collection or of an object in it.
    pub(crate) fn path(&self, namespace: &str, name: &str) -> String {
        path_of(
            &self.group,
            &self.version,
            &self.plural,
            if self.namespaced { namespace } else { "" },
            name,
            "",
        )
    }

    /// `pods`, `deployments.apps`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// All served kinds without subresources, and the group versions that could not be asked.
pub(crate) async fn kinds(client: &Client) -> Result<(Vec<Served>, Vec<(String, Error)>), Error> {
    let groups: APIGroupList = client.call(Method::GET, "/apis", None::<&()>).await?;
    let mut versions = vec![(String::new(), "v1".to_owned())];
    for group in groups.groups {
        // A kind may be missing in the preferred version; the first version that has it counts.
        let preferred = group.preferred_version.as_ref().map(|v| v.version.clone());
        let others =
            group.versions.iter().map(|v| v.version.clone()).filter(|v| Some(v) != preferred.as_ref());
        versions.extend(preferred.clone().into_iter().chain(others).map(|v| (group.name.clone(), v)));
    }
    let (mut served, mut failed): (Vec<Served>, _) = (Vec::new(), Vec::new());
    for (group, version) in versions {
        let path = path_of(&group, &version, "", "", "", "");
        let list: APIResourceList = match client.call(Method::GET, &path, None::<&()>).await {
            Ok(list) => list,
            Err(error) => {
                failed
                    .push((path.trim_start_matches("/apis/").trim_start_matches("/api/").to_owned(), error));
                continue;
            }
        };
        for resource in list.resources.into_iter().filter(|r| !r.name.contains('/')) {
            if served.iter().any(|s| s.group == group && s.plural == resource.name) {
                continue;
            }
            served.push(Served {
                group: group.clone(),
                version: version.clone(),
                plural: resource.name,
                kind: resource.kind,
                namespaced: resource.namespaced,
                verbs: resource.verbs,
            });
        }
    }
    Ok((served, failed))
}

//! GET, LIST and WATCH, all from the watch cache; pages and exact revisions from the store's history.
//!
//! Rule: Kubernetes API Concepts, "Resource versions", "Retrieving large results sets in chunks", "Efficient
//! detection of changes".

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::custom::Definition;
use api::field::ErrorList;
use api::kinds::Kind;
use api::object::Object;
use api::selector::{FieldSelector, LabelSelector};
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{DecodeError, Engine as _};
use bytes::Bytes;
use client::Body;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::answer::{self, Include, ListMeta};
use crate::convert;
use crate::extensions::Retirement;
use crate::fairness::{Held, Place};
use crate::fields;
use crate::negotiate::{Form, Format, View};
use crate::registry::{Registry, Target, store_error};
use crate::request_info::{Query, RequestInfo};
use crate::status::{ApiError, ApiResult};
use crate::watch_cache::{Batch, Changed, WatchCache, with_revision};

/// Bookmarks come this often, at most.
const BOOKMARK: Duration = Duration::from_secs(60);
/// Changes that a watch makes ready at once.
const AT_ONCE: usize = 64;
/// A watch that begins with the state holds its seats this long at most: a client that does not read is no load.
const SEATED: Duration = Duration::from_secs(10);
/// A watch without `timeoutSeconds` ends after this, plus up to as much again, so that not all end at once.
const WATCH_TIMEOUT: Duration = Duration::from_secs(1800);
/// A client may ask for more time than a clock can hold.
const LONGEST_WATCH: Duration = Duration::from_secs(366 * 24 * 3600);

/// Labels and fields that objects must have.
#[derive(Debug, Clone, Default)]
pub struct Selectors {
    /// Labels.
    pub labels: LabelSelector,
    /// Fields.
    pub fields: FieldSelector,
    /// What a custom resource's fields are found by.
    definition: Option<Arc<Definition>>,
}

impl Selectors {
    /// Of a request to a kind.
    pub fn parse(kind: &Kind, info: &RequestInfo) -> ApiResult<Self> {
        let mut selectors = Self::of(kind, info.query.get("labelSelector"), info.query.get("fieldSelector"))?;
        if !info.name.is_empty() {
            // a collection request with a name (the deprecated watch path): that object only
            selectors.fields.terms.push(("metadata.name".to_owned(), info.name.clone(), true));
        }
        Ok(selectors)
    }

    /// From the texts of both selectors.
    pub fn of(kind: &Kind, label_text: &str, field_text: &str) -> ApiResult<Self> {
        let (labels, fields) = Self::read(label_text, field_text)?;
        fields::check(kind, &fields, label_text, field_text)?;
        Ok(Self { labels, fields, definition: kind.definition.clone() })
    }

    fn read(label_text: &str, field_text: &str) -> ApiResult<(LabelSelector, FieldSelector)> {
        let labels = LabelSelector::parse(label_text)
            .map_err(|e| ApiError::bad_request(format!("unable to parse requirement: {e}")))?;
        let fields = FieldSelector::parse(field_text).map_err(|e| ApiError::bad_request(e.to_string()))?;
        Ok((labels, fields))
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Object) -> bool {
        self.labels.matches(object.labels())
            && self.fields.matches(|field| fields::value(object, self.definition.as_deref(), field))
    }

    fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }
}

fn include(query: &Query) -> ApiResult<Include> {
    match query.get("includeObject") {
        "" | "Metadata" => Ok(Include::Metadata),
        "None" => Ok(Include::None),
        "Object" => Ok(Include::Object),
        other => Err(ApiError::bad_request(format!(
            "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', 'None', or empty",
            api::field::quote(other)
        ))),
    }
}

/// The `includeObject` of a request.
pub fn include_object(query: &Query) -> ApiResult<Include> {
    include(query)
}

fn revision(text: &str) -> ApiResult<u64> {
    text.parse().map_err(|_| {
        ApiError::bad_request(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

/// GET of one object.
pub async fn get(
    registry: &Registry,
    target: Target<'_>,
    info: &RequestInfo,
    form: &Form,
) -> ApiResult<Response<Body>> {
    let object = match info.query.get("resourceVersion") {
        "" => registry.get(target).await?,
        text => {
            registry.cache().at_least(revision(text)?).await?;
            let key = target.kind.key(target.namespace, target.name);
            registry
                .cache()
                .get(target.kind, &key)
                .ok_or_else(|| registry.cache().absent(target.kind, target.name, &key))?
        }
    };
    let object = convert::seen(registry.cache(), target.kind, &object).await?;
    Ok(answer::object(200, form, target.kind, object.json(), include(&info.query)?))
}

/// Where a list goes on: the revision it stands for and the last key given out.
struct Continue {
    revision: u64,
    after: String,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD
            .encode(json!({"v": "meta.k8s.io/v1", "rv": self.revision, "start": self.after}).to_string())
    }

    fn decode(text: &str) -> ApiResult<Self> {
        let broken = |why: String| {
            ApiError::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
        };
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|error| {
            let at = match error {
                DecodeError::InvalidByte(at, _) | DecodeError::InvalidLength(at) => at,
                DecodeError::InvalidLastSymbol { offset, .. } => offset,
                DecodeError::InvalidPadding => text.len(),
            };
            broken(format!("illegal base64 data at input byte {at}"))
        })?;
        let value = api::codec::parse_json(&bytes).map_err(|e| broken(e.to_string()))?;
        let version = value["v"].as_str().unwrap_or_default();
        if version != "meta.k8s.io/v1" {
            return Err(broken(format!("server does not recognize this encoded version {version}")));
        }
        let (revision, after) = (value["rv"].as_u64().unwrap_or_default(), value["start"].as_str());
        let after = after.unwrap_or_default();
        if revision == 0 {
            let why = "incorrect encoded start resourceVersion (version meta.k8s.io/v1): meta.k8s.io/v1";
            return Err(broken(why.to_owned()));
        }
        if after.is_empty() {
            return Err(broken(
                "encoded start key empty (version meta.k8s.io/v1): meta.k8s.io/v1".to_owned(),
            ));
        }
        // a key must not lead out of its collection
        let path = after.trim_start_matches('/').strip_suffix('\0').unwrap_or(after.trim_start_matches('/'));
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(broken(after.to_owned()));
        }
        Ok(Self { revision, after: after.to_owned() })
    }
}

/// The selected objects of a collection, at most `limit` of them, and where they stand.
pub struct Page {
    /// In key order.
    pub items: Vec<Arc<Object>>,
    /// The list's metadata.
    pub meta: ListMeta,
}

/// What the query of a list or watch says of its size and length.
struct Bounds {
    /// Objects on a page; zero for all.
    limit: usize,
    /// Seconds that a watch lasts; zero for the default.
    seconds: i64,
}

fn list_options(query: &Query) -> ApiResult<Bounds> {
    let number = |name: &str| query.integer(name).map_err(ApiError::bad_request);
    let seconds = number("timeoutSeconds")?.unwrap_or_default();
    let limit = number("limit")?.unwrap_or_default();
    let mut errors = ErrorList::default();
    check_list_options(query, &mut errors);
    if errors.is_empty() {
        return Ok(Bounds { limit: usize::try_from(limit).unwrap_or(0), seconds });
    }
    // what cannot be read is told before what does not fit together
    Selectors::read(query.get("labelSelector"), query.get("fieldSelector"))?;
    Err(ApiError::invalid_named("meta.k8s.io", "ListOptions", "", &errors))
}

fn check_list_options(query: &Query, errors: &mut ErrorList) {
    let mut forbid = |why: &str| errors.forbidden("resourceVersionMatch", why);
    let (rv, matching) = (query.get("resourceVersion"), query.get("resourceVersionMatch"));
    let (initial, continued) = (query.has("sendInitialEvents"), !query.get("continue").is_empty());
    if query.flag("watch") {
        if initial && matching != "NotOlderThan" {
            forbid("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
        }
        if matching.is_empty() {
            return;
        }
        if !initial {
            forbid("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
        }
        if matching != "NotOlderThan" {
            errors.not_supported("resourceVersionMatch", &json!(matching), &["NotOlderThan"]);
        }
        if continued {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            errors.forbidden("resourceVersionMatch", why);
        }
        return;
    }
    if !matching.is_empty() {
        if rv.is_empty() {
            forbid("resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if continued {
            forbid("resourceVersionMatch is forbidden when continue is provided");
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            errors.not_supported("resourceVersionMatch", &json!(matching), &["Exact", "NotOlderThan", ""]);
        }
        if matching == "Exact" && rv == "0" {
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            errors.forbidden("resourceVersionMatch", why);
        }
    }
    if initial {
        errors.forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list");
    }
}

/// Collects the page of a collection that the query asks for.
pub async fn page(registry: &Registry, kind: &Arc<Kind>, info: &RequestInfo) -> ApiResult<Page> {
    let query = &info.query;
    let limit = list_options(query)?.limit;
    let selectors = Selectors::parse(kind, info)?;
    let prefix = collection_prefix(kind, &info.namespace);
    let (rv, matching, token) =
        (query.get("resourceVersion"), query.get("resourceVersionMatch"), query.get("continue"));
    if !token.is_empty() {
        if !matches!(rv, "" | "0") {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue".to_owned(),
            ));
        }
        let from = Continue::decode(token)?;
        let after = format!("{prefix}{}", from.after);
        return at_revision(registry, kind, &prefix, Some(&after), from.revision, limit, &selectors).await;
    }
    let cache = registry.cache();
    let asked = match rv {
        "" => None,
        rv => Some(revision(rv).map_err(|e| e.with_prefix("invalid resource version: "))?),
    };
    match asked {
        None => {
            cache.fresh().await?;
        }
        Some(exact) if exact > 0 && (matching == "Exact" || matching.is_empty() && limit > 0) => {
            cache.at_least(exact).await?;
            return at_revision(registry, kind, &prefix, None, exact, limit, &selectors).await;
        }
        Some(least) => cache.at_least(least).await?,
    }
    // `resourceVersion=0` means "whatever is there": the reference then ignores the limit
    let limit = if asked == Some(0) { 0 } else { limit };
    let mut equal = selectors.fields.terms.iter().filter(|(_, _, equal)| *equal);
    let listed = equal
        .find_map(|(label, value, _)| cache.list_by(kind, &prefix, label, value))
        .unwrap_or_else(|| cache.list(kind, &prefix, None));
    let items = convert::seen_all(cache, kind, listed.items).await?;
    Ok(cut(items, listed.revision, limit, &selectors, &prefix))
}

fn cut(items: Vec<Arc<Object>>, revision: u64, limit: usize, selectors: &Selectors, prefix: &str) -> Page {
    if limit == 0 {
        let items = if selectors.is_everything() {
            items
        } else {
            items.into_iter().filter(|o| selectors.matches(o)).collect()
        };
        return Page { items, meta: ListMeta { revision, ..ListMeta::default() } };
    }
    let mut chosen = Vec::with_capacity(limit.min(items.len()));
    let (mut more, total) = (false, items.len());
    for (i, object) in items.into_iter().enumerate() {
        if !selectors.matches(&object) {
            continue;
        }
        chosen.push(object);
        if chosen.len() == limit {
            // whether one of the rest is selected is for the next page to say
            more = i + 1 < total;
            break;
        }
    }
    let mut meta = ListMeta { revision, ..ListMeta::default() };
    if more && let Some(last) = chosen.last() {
        meta.next = Continue { revision, after: position(last, prefix) }.encode();
        if selectors.is_everything() {
            meta.remaining = Some((total - chosen.len()) as u64);
        }
    }
    Page { items: chosen, meta }
}

/// The key of an object, relative to the collection that is listed.
fn position(object: &Object, prefix: &str) -> String {
    let spans_namespaces = prefix.matches('/').count() == 4;
    match object.namespace() {
        Some(namespace) if spans_namespaces => format!("{namespace}/{}", object.name()),
        _ => object.name().to_owned(),
    }
}

fn collection_prefix(kind: &Kind, namespace: &str) -> String {
    if kind.namespaced && !namespace.is_empty() {
        format!("{}{namespace}/", kind.storage_prefix)
    } else {
        kind.storage_prefix.clone()
    }
}

/// Objects as they were at `revision`, from the store's history.
async fn at_revision(
    registry: &Registry,
    kind: &Kind,
    prefix: &str,
    after: Option<&str>,
    revision: u64,
    limit: usize,
    selectors: &Selectors,
) -> ApiResult<Page> {
    let (mut items, mut after, mut meta) =
        (Vec::new(), after.map(str::to_owned), ListMeta { revision, ..ListMeta::default() });
    loop {
        let range = match registry.store().range(prefix, after.as_deref(), Some(revision), limit).await {
            Ok(range) => range,
            Err(store::StoreError::Compacted { .. }) => {
                return Err(expired_continue(
                    revision,
                    after.as_deref(),
                    prefix,
                    registry.cache().progress(),
                ));
            }
            Err(other) => return Err(store_error(&other)),
        };
        let mut rest = range.items.into_iter();
        for kv in rest.by_ref() {
            after = Some(kv.key.to_string());
            let Ok(object) = Object::from_json(with_revision(&kv.value, kv.mod_revision), kv.mod_revision)
            else {
                continue;
            };
            fields::index(&object);
            let object = convert::seen(registry.cache(), kind, &Arc::new(object)).await?;
            if selectors.matches(&object) {
                items.push(object);
            }
            if limit > 0 && items.len() == limit {
                break;
            }
        }
        let left = rest.len() as u64 + range.remaining;
        if limit > 0 && items.len() == limit && (range.more || left > 0) {
            if let Some(last) = items.last() {
                meta.next = Continue { revision, after: position(last, prefix) }.encode();
            }
            if selectors.is_everything() {
                meta.remaining = Some(left);
            }
            return Ok(Page { items, meta });
        }
        if !range.more {
            return Ok(Page { items, meta });
        }
    }
}

/// 410 with a token that goes on at the newest revision.
fn expired_continue(_revision: u64, after: Option<&str>, prefix: &str, now: u64) -> ApiError {
    match after.and_then(|a| a.strip_prefix(prefix)) {
        Some(after) => {
            let fresh = Continue { revision: now, after: after.to_owned() }.encode();
            ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
            )
            .with_list_continue(&fresh)
        }
        None => ApiError::expired("The resourceVersion for the provided list is too old.".to_owned()),
    }
}

/// LIST.
pub async fn list(
    registry: &Registry,
    kind: &Arc<Kind>,
    info: &RequestInfo,
    form: &Form,
) -> ApiResult<Response<Body>> {
    let include = include(&info.query)?;
    let page = page(registry, kind, info).await?;
    let mut response = answer::list(form, kind, page.items, &page.meta, include);
    let damaged = registry.cache().damaged(&collection_prefix(kind, &info.namespace));
    let warnings: Vec<String> =
        damaged.iter().map(|key| format!("{key} cannot be read and is left out of this list")).collect();
    crate::body::add_warnings(&mut response, &warnings);
    Ok(response)
}

/// WATCH over HTTP: a stream of JSON documents, one a line. It ends when the kind is `retired`. The seats are given back
/// when it has begun, or, where it begins with the state, when that is told.
pub async fn watch(
    registry: &Registry,
    kind: &Arc<Kind>,
    info: &RequestInfo,
    form: &Form,
    retired: Option<Retirement>,
    place: Option<Place>,
) -> ApiResult<Response<Body>> {
    let query = &info.query;
    let bounds = list_options(query)?;
    let selectors = Selectors::parse(kind, info)?;
    let include = include(query)?;
    let initial = query.flag("sendInitialEvents");
    let from = match query.get("resourceVersion") {
        "" | "0" => {
            registry.cache().fresh().await?;
            None
        }
        text if initial => {
            registry.cache().at_least(revision(text)?).await?;
            None
        }
        text => Some(revision(text)?),
    };
    let timeout = match bounds.seconds {
        0 => WATCH_TIMEOUT.mul_f64(1.0 + rand::random::<f64>()),
        seconds => Duration::from_secs(seconds.try_into().unwrap_or_default()),
    };
    // `sendInitialEvents=false` begins now, without the state
    let from = match from {
        None if query.has("sendInitialEvents") && !initial => Some(registry.cache().progress()),
        other => other,
    };
    let prefix = collection_prefix(kind, &info.namespace);
    let encoder = Encoder {
        kind: kind.clone(),
        form: form.clone(),
        include,
        columns: true,
        bookmarks: query.flag("allowWatchBookmarks"),
    };
    let stream = match registry.cache().watch(kind, from) {
        Ok((past, now, queue)) => Box::new(Stream {
            pending: VecDeque::new(),
            past: past.into(),
            queue,
            last: from.unwrap_or(now).max(now),
            initial_bookmark: initial.then_some(now),
            seats: place.filter(|_| initial).map(|place| Held::new(place, SEATED)),
            progress: registry.cache().watch_progress(),
            cache: registry.cache().clone(),
            selectors,
            namespace: (prefix != kind.storage_prefix).then(|| info.namespace.clone()),
            encoder,
            retired,
            deadline: Instant::now() + timeout.min(LONGEST_WATCH),
            next_bookmark: Instant::now() + BOOKMARK,
            timer: None,
        }),
        Err(error) => {
            // a watch that cannot begin says so in its stream, with 200
            let event = encode_event(form.format, "ERROR", &error.to_value());
            return Ok(answer::bytes(200, stream_type(form.format), event));
        }
    };
    let body = StreamBody::new(futures_util::stream::unfold(stream, |mut stream| async move {
        stream.next().await.map(|bytes| (Ok(Frame::data(bytes)), stream))
    }));
    let mut response = Response::new(body.boxed_unsync());
    let content_type = http::HeaderValue::from_static(stream_type(form.format));
    response.headers_mut().insert(http::header::CONTENT_TYPE, content_type);
    Ok(response)
}

/// The `Content-Type` of a watch.
fn stream_type(format: Format) -> &'static str {
    match format {
        Format::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    }
}

/// An event on the wire: a line of JSON, or a message with its length before it.
fn encode_event(format: Format, kind: &str, object: &Value) -> Bytes {
    if format == Format::Protobuf {
        // every kind that is watched in protobuf has messages
        let message = answer::to_protobuf(object).unwrap_or_default();
        return api::codec::encode_watch_event(kind, &message).into();
    }
    let mut line = json!({"type": kind, "object": object}).to_string();
    line.push('\n');
    line.into()
}

struct Encoder {
    kind: Arc<Kind>,
    form: Form,
    include: Include,
    columns: bool,
    bookmarks: bool,
}

impl Encoder {
    fn event(&mut self, what: &str, object: &Object, revision: u64) -> Bytes {
        if self.form == Form::JSON && revision == object.revision() {
            let json = object.json();
            let mut line = Vec::with_capacity(json.len() + 40);
            line.extend_from_slice(b"{\"type\":\"");
            line.extend_from_slice(what.as_bytes());
            line.extend_from_slice(b"\",\"object\":");
            line.extend_from_slice(json.trim_ascii_end());
            line.extend_from_slice(b"}\n");
            return line.into();
        }
        let mut tree = object.to_value();
        tree["metadata"]["resourceVersion"] = json!(revision.to_string());
        let seen = answer::view(&self.form, &self.kind, &tree, self.include, self.columns);
        self.columns = false;
        encode_event(self.form.format, what, &seen)
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Bytes {
        let mut object = json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(),
            "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null}});
        if initial_end {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let seen = match self.form.view {
            View::Object => object,
            _ => answer::view(&self.form, &self.kind, &object, self.include, self.columns),
        };
        encode_event(self.form.format, "BOOKMARK", &seen)
    }
}

struct Stream {
    pending: VecDeque<Bytes>,
    past: VecDeque<Changed>,
    queue: mpsc::Receiver<Batch>,
    /// Everything up to here was told or does not concern this watch.
    last: u64,
    initial_bookmark: Option<u64>,
    /// Until the state is told.
    seats: Option<Held>,
    progress: watch::Receiver<u64>,
    cache: Arc<WatchCache>,
    selectors: Selectors,
    namespace: Option<String>,
    encoder: Encoder,
    retired: Option<Retirement>,
    deadline: Instant,
    next_bookmark: Instant,
    /// Stays between two events: a thousand watchers that are told of one would each take it down and set it up again.
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Stream {
    /// When something is to be done though nothing happens.
    fn alarm(&self) -> Instant {
        if self.encoder.bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(ready) = self.take_ready().await {
                return Some(ready);
            }
            let alarm = self.alarm();
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(alarm)));
            if timer.deadline() != alarm {
                timer.as_mut().reset(alarm);
            }
            tokio::select! {
                batch = self.queue.recv() => {
                    // the queue closes when we were too slow: the client begins anew
                    let batch = batch?;
                    self.take_in(&batch).await;
                }
                () = end_of(&mut self.retired) => {
                    // the last events are told, then the client begins anew
                    self.deadline = Instant::now();
                    self.retired = None;
                    while let Ok(batch) = self.queue.try_recv() {
                        self.take_in(&batch).await;
                    }
                }
                () = timer => {
                    if Instant::now() >= self.deadline {
                        return None;
                    }
                    self.next_bookmark += BOOKMARK;
                    self.last = self.last.max(*self.progress.borrow_and_update());
                    // only what the queue has delivered is told: a bookmark never runs ahead of events
                    if self.queue.is_empty() {
                        return Some(self.encoder.bookmark(self.last, false));
                    }
                }
            }
        }
    }

    /// What can be sent now, as one piece.
    async fn take_ready(&mut self) -> Option<Bytes> {
        while !self.past.is_empty() && self.pending.len() < AT_ONCE {
            let some: Vec<Changed> = self.past.drain(..self.past.len().min(AT_ONCE)).collect();
            self.take_in(&some).await;
        }
        if self.past.is_empty()
            && let Some(revision) = self.initial_bookmark.take()
        {
            self.seats = None;
            let line = self.encoder.bookmark(revision, true);
            self.pending.push_back(line);
        }
        match self.pending.len() {
            0 => None,
            1 => self.pending.pop_front(),
            _ => Some(
                self.pending
                    .drain(..)
                    .fold(Vec::new(), |mut all, line| {
                        all.extend_from_slice(&line);
                        all
                    })
                    .into(),
            ),
        }
    }

    /// Takes in changes, in the version that is watched.
    async fn take_in(&mut self, changes: &[Changed]) {
        if convert::is_stored_as_is(&self.encoder.kind) {
            changes.iter().for_each(|change| self.push(change));
            return;
        }
        match convert::seen_changes(&self.cache, &self.encoder.kind, changes.to_vec()).await {
            Ok(changes) => changes.iter().for_each(|change| self.push(change)),
            Err(error) => {
                // a webhook that cannot convert: the client begins anew
                let event = encode_event(self.encoder.form.format, "ERROR", &error.to_value());
                self.pending.push_back(event);
                self.past.clear();
                self.queue.close();
            }
        }
    }

    fn push(&mut self, change: &Changed) {
        self.last = self.last.max(change.revision);
        if let Some((what, object)) = select(&self.selectors, self.namespace.as_deref(), change) {
            self.pending.push_back(self.encoder.event(what, object, change.revision));
        }
    }
}

/// Returns when the kind is no longer what it was; never for a kind that stays.
pub async fn end_of(retired: &mut Option<Retirement>) {
    match retired {
        Some(retired) => retired.wait().await,
        None => std::future::pending().await,
    }
}

/// What a change means to a watcher with selectors: an object may come into view or leave it.
pub fn select<'a>(
    selectors: &Selectors,
    namespace: Option<&str>,
    change: &'a Changed,
) -> Option<(&'static str, &'a Arc<Object>)> {
    let seen = |o: &Option<Arc<Object>>| {
        o.as_ref().is_some_and(|o| namespace.is_none_or(|n| o.namespace() == Some(n)) && selectors.matches(o))
    };
    match (seen(&change.old), seen(&change.new)) {
        (false, true) => change.new.as_ref().map(|o| ("ADDED", o)),
        (true, true) => change.new.as_ref().map(|o| ("MODIFIED", o)),
        // the old state, with the revision of the change
        (true, false) => change.old.as_ref().map(|o| ("DELETED", o)),
        (false, false) => None,
    }
}

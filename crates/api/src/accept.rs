//! `Accept` headers as Kubernetes reads them: media types by quality, with the group, version and kind that they ask for.
//!
//! Rule: Kubernetes API Concepts, "Resource representations" and "Receiving resources as Tables".

/// A media type that the client accepts.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Clause {
    /// The media type in lower case; it may be `*/*`.
    pub media: String,
    /// From 0 to 1.
    pub quality: f64,
    /// The kind (`as`) that is asked for; empty for the object's own.
    pub kind: String,
    /// Its group (`g`).
    pub group: String,
    /// Its version (`v`).
    pub version: String,
    /// Asks for a stream, or a version of the server's own objects, that there is not.
    pub is_foreign: bool,
}

impl Clause {
    fn parse(text: &str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut clause = Self { media, quality: 1.0, ..Self::default() };
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "q" => clause.quality = value.parse().unwrap_or(1.0),
                "as" => value.clone_into(&mut clause.kind),
                "g" => value.clone_into(&mut clause.group),
                "v" => value.clone_into(&mut clause.version),
                "stream" => clause.is_foreign |= !matches!(value, "" | "watch"),
                "sv" => clause.is_foreign |= !matches!(value, "" | "v1"),
                _ => {}
            }
        }
        clause
    }
}

/// What the header's values accept, the best first; empty where the client does not say.
pub fn clauses<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<Clause> {
    let mut clauses: Vec<Clause> =
        values.into_iter().flat_map(|value| value.split(',').map(Clause::parse)).collect();
    // the sort is stable: among equals, the client's order counts
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

//! Cron schedules: five fields, or a descriptor.
//!
//! Source: Kubernetes documentation, "CronJob", schedule syntax.

/// What is wrong with a schedule; `None`: nothing.
pub(super) fn complaint(schedule: &str) -> Option<String> {
    let schedule = schedule.trim();
    if let Some(descriptor) = schedule.strip_prefix('@') {
        let known = matches!(
            descriptor,
            "yearly" | "annually" | "monthly" | "weekly" | "daily" | "midnight" | "hourly"
        );
        let every = descriptor.strip_prefix("every ").is_some_and(|d| !d.is_empty());
        return (!known && !every).then(|| format!("unrecognized descriptor: {schedule}"));
    }
    let fields: Vec<&str> = schedule.split_ascii_whitespace().collect();
    if fields.len() != 5 {
        return Some(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
    }
    const BOUNDS: [(u32, u32, &[&str]); 5] = [
        (0, 59, &[]),
        (0, 23, &[]),
        (1, 31, &[]),
        (1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
        (0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
    ];
    fields
        .iter()
        .zip(BOUNDS)
        .find_map(|(field, bounds)| field.split(',').find_map(|part| range(part, bounds)))
}

fn range(text: &str, (low, high, names): (u32, u32, &[&str])) -> Option<String> {
    let (span, step) = match text.split_once('/') {
        Some((span, step)) => (span, Some(step)),
        None => (text, None),
    };
    if step.is_some_and(|s| s.contains('/')) {
        return Some(format!("too many slashes: {text}"));
    }
    let number = |word: &str| -> Result<u32, String> {
        let lower = word.to_ascii_lowercase();
        if let Some(at) = names.iter().position(|n| **n == lower) {
            return Ok(at as u32 + low);
        }
        word.parse().map_err(|_| {
            format!("failed to parse int from {word}: strconv.Atoi: parsing \"{word}\": invalid syntax")
        })
    };
    let (start, end) = if span == "*" || span == "?" {
        (low, high)
    } else {
        let (first, last) = span.split_once('-').map_or((span, None), |(a, b)| (a, Some(b)));
        let start = match number(first) {
            Ok(n) => n,
            Err(why) => return Some(why),
        };
        let end = match last.map(number) {
            Some(Ok(n)) => n,
            Some(Err(why)) => return Some(why),
            None if step.is_some() => high,
            None => start,
        };
        (start, end)
    };
    match step.map(str::parse::<u32>) {
        Some(Err(_)) => return Some(format!("failed to parse int from {}", step.unwrap_or_default())),
        Some(Ok(0)) => return Some(format!("step of range should be a positive number: {text}")),
        _ => {}
    }
    if start < low {
        return Some(format!("beginning of range ({start}) below minimum ({low}): {text}"));
    }
    if end > high {
        return Some(format!("end of range ({end}) above maximum ({high}): {text}"));
    }
    if start > end {
        return Some(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_that_run_are_accepted_and_others_explained() {
        for good in ["* * * * *", "*/5 0-6 1,15 jan-mar mon", "@daily", "0 3 * * 0"] {
            assert_eq!(complaint(good), None, "{good}");
        }
        assert_eq!(complaint("61 * * * *").as_deref(), Some("end of range (61) above maximum (59): 61"));
        assert_eq!(complaint("@never").as_deref(), Some("unrecognized descriptor: @never"));
        assert_eq!(
            complaint("* * * * * *").as_deref(),
            Some("expected exactly 5 fields, found 6: [* * * * * *]")
        );
    }
}

//! The state of the lines for people: `/debug/api_priority_and_fairness/dump_...`, columns as upstream's.

use super::Fairness;
use super::config::{Config, Level};

/// The text of one of the pages; none for a page that is not there.
pub fn page(fairness: &Fairness, name: &str) -> Option<String> {
    let config = fairness.config();
    let rows = match name {
        "dump_priority_levels" => levels(&config),
        "dump_queues" => queues(&config),
        "dump_requests" => requests(&config),
        _ => return None,
    };
    Some(aligned(&rows))
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn levels(config: &Config) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "PriorityLevelName",
        "ActiveQueues",
        "IsIdle",
        "IsQuiescing",
        "WaitingRequests",
        "ExecutingRequests",
        "DispatchedRequests",
        "RejectedRequests",
        "TimedoutRequests",
        "CancelledRequests",
    ])];
    for level in config.levels.values() {
        let state = level.lines.read(|q| (q.active(), q.waiting(), q.executing()));
        let Some((active, waiting, executing)) = state else {
            rows.push([vec![level.name.clone()], row(["<none>"; 9])].concat());
            continue;
        };
        let (mut dispatched, mut sums) = (0, [0; 4]);
        for flow in config.flows.iter().filter(|flow| flow.level.name == level.name) {
            let (ran, refused) = flow.stats.counts();
            dispatched += ran;
            sums.iter_mut().zip(refused).for_each(|(sum, count)| *sum += count);
        }
        let [limit, full, timed_out, cancelled] = sums;
        let idle = waiting == 0 && executing == 0;
        let mut cells = vec![level.name.clone(), active.to_string(), idle.to_string(), false.to_string()];
        cells.extend([waiting as u64, executing as u64, dispatched].map(|n| n.to_string()));
        cells.extend([limit + full, timed_out, cancelled].map(|n| n.to_string()));
        rows.push(cells);
    }
    rows
}

fn limited(config: &Config) -> impl Iterator<Item = (&Level, Vec<super::queues::QueueView>)> {
    config.levels.values().filter_map(|level| Some((&**level, level.lines.read(|q| q.view())?)))
}

fn queues(config: &Config) -> Vec<Vec<String>> {
    let mut rows = vec![row([
        "PriorityLevelName",
        "Index",
        "PendingRequests",
        "ExecutingRequests",
        "SeatsInUse",
        "NextDispatchR",
    ])];
    for (level, queues) in limited(config) {
        for queue in queues {
            rows.push(vec![
                level.name.clone(),
                queue.index.to_string(),
                queue.waiting.len().to_string(),
                queue.executing.to_string(),
                queue.seats.to_string(),
                format!("{:.8}ss", queue.next),
            ]);
        }
    }
    rows
}

fn requests(config: &Config) -> Vec<Vec<String>> {
    let mut rows = vec![row(["PriorityLevelName", "QueueIndex", "RequestIndexInQueue", "InitialSeats"])];
    for (level, queues) in limited(config) {
        for queue in queues {
            for (at, (_, seats)) in queue.waiting.iter().enumerate() {
                rows.push(vec![
                    level.name.clone(),
                    queue.index.to_string(),
                    at.to_string(),
                    seats.to_string(),
                ]);
            }
        }
    }
    rows
}

/// Columns with a comma after each but the last.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|at| rows.iter().filter_map(|r| r.get(at)).map(String::len).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let comma = if at + 1 < columns { ", " } else { "" };
            text.push_str(&format!("{:<1$}", format!("{cell}{comma}"), width + 2));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

//! What every program tells of itself, for its `/metrics`.

use crate::metrics::{Families, Kind};

/// Adds the process's `process_...` metrics. Reads `/proc`.
pub fn collect(families: &mut Families) {
    let mut add = |kind: Kind, name: &str, help: &str, value: f64| {
        families.value(kind, name, help, &[], value, None);
    };
    let read = |file: &str| std::fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
    let statm = read("statm");
    let mut fields = statm.split_whitespace().filter_map(|field| field.parse::<f64>().ok());
    let page = rustix::param::page_size() as f64;
    if let (Some(all), Some(resident)) = (fields.next(), fields.next()) {
        let help = "Resident memory size in bytes.";
        add(Kind::Gauge, "process_resident_memory_bytes", help, resident * page);
        add(Kind::Gauge, "process_virtual_memory_bytes", "Virtual memory size in bytes.", all * page);
    }
    // after the name, which may hold anything: state is the third field of all
    let stat = read("stat");
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    let per_second = rustix::param::clock_ticks_per_second().max(1) as f64;
    if let (Some(user), Some(system), Some(start)) = (fields.get(11), fields.get(12), fields.get(19)) {
        let help = "Total user and system CPU time spent in seconds.";
        add(Kind::Counter, "process_cpu_seconds_total", help, (user + system) / per_second);
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let booted = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        if let Some(booted) = booted {
            let help = "Start time of the process since unix epoch in seconds.";
            add(Kind::Gauge, "process_start_time_seconds", help, booted + start / per_second);
        }
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        add(Kind::Gauge, "process_open_fds", "Number of open file descriptors.", open.count() as f64);
    }
    if let Some(most) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        add(Kind::Gauge, "process_max_fds", "Maximum number of open file descriptors.", most as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_says_what_it_uses() {
        let mut families = Families::default();
        collect(&mut families);
        for name in ["resident_memory_bytes", "cpu_seconds_total", "start_time_seconds", "open_fds"] {
            assert!(families.has(&format!("process_{name}")), "{name}");
        }
    }
}

//! `cargo xtask TASK`: the project's own tasks, one module each. The commands a newcomer needs are in
//! the `Makefile`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

mod apparmor;
mod bench;
mod cri;
mod etcd;
mod fuzz;
mod schema;
mod tidy;

#[derive(Parser)]
#[command(about = "Project tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Derives the schema descriptor from Kubernetes' published API documents.
    Schema(schema::Args),
    /// Checks what no compiler checks: crate edges, licences, duplicate versions, the map, file sizes.
    Tidy,
    /// Measures the release binary on this machine and writes a page of docs/.
    Bench {
        /// What is measured.
        #[arg(default_value = "overview")]
        suite: bench::Suite,
        /// The binary, as `make build` makes it.
        #[arg(long, default_value = "target/release/navarch")]
        binary: PathBuf,
    },
    /// Sends broken requests and expressions to an API server until the time is over or one is answered badly.
    Fuzz(fuzz::Args),
    /// Compiles our AppArmor profile (crates/runtime/src/apparmor) by Debian's parser.
    Apparmor,
    /// Derives crates/cri/src/v1.rs from the published api.proto (build with `--features codegen`).
    Cri {
        /// The CRI v1 `api.proto`.
        #[arg(long)]
        proto: PathBuf,
    },
    /// Derives crates/store/src/etcd/pb.rs from etcd's published .proto files (build with `--features codegen`).
    Etcd {
        /// The folder that holds `etcd/api` and what its files import.
        #[arg(long)]
        protos: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    let root = workspace_root();
    match Cli::parse().task {
        Task::Schema(args) => schema::run(&args),
        Task::Tidy => tidy::run(&root),
        Task::Bench { suite, binary } => bench::run(&root, &binary, suite),
        Task::Fuzz(args) => fuzz::run(&root, &args),
        Task::Apparmor => apparmor::run(&root),
        Task::Cri { proto } => cri::run(&root, &proto),
        Task::Etcd { protos } => etcd::run(&root, &protos),
    }
}

/// The folder of the root manifest.
fn workspace_root() -> PathBuf {
    // not the path at build time: clones may share a target folder
    let here = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    here.ancestors().nth(2).unwrap_or(&here).to_owned()
}

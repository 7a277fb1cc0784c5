//! Project tasks: `cargo xtask schema`. One module a task.

use clap::{Parser, Subcommand};

mod schema;

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
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Schema(args) => schema::run(&args),
    }
}

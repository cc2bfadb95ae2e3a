//! The host tool: `setup`, `run` and `test`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tagvisor_tool::paths::Cache;
use tagvisor_tool::setup::{self, Part};

#[derive(Parser)]
#[command(name = "tagvisor-tool", version)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Bring what a build and a run need and the machine lacks.
    Setup {
        /// Bring only these parts.
        parts: Vec<Part>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Task::Setup { parts } => report(set_up(&parts)),
    }
}

fn set_up(parts: &[Part]) -> anyhow::Result<()> {
    let cache = Cache::of_user()?;
    setup::ensure(&cache, if parts.is_empty() { &Part::ALL } else { parts })?;
    println!("{}", setup::describe(&cache)?);
    Ok(())
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(3)
        }
    }
}

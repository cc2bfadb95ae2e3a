//! The host tool: `setup`, `run`, `bundle` and `test`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tagvisor_tool::bundle::command::{BundleOptions, bundle};
use tagvisor_tool::paths::Cache;
use tagvisor_tool::run::options::{EXIT_CODES, RunOptions};
use tagvisor_tool::run::{error_code, run};
use tagvisor_tool::setup::{self, Part};
use tagvisor_tool::test::test;

#[derive(Parser)]
#[command(
    name = "tagvisor-tool",
    bin_name = "scripts",
    version,
    propagate_version = true
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Bring what a build and a run need and the machine lacks
    #[command(display_name = "tagvisor", override_usage = "scripts/setup [PARTS]...")]
    Setup {
        /// Bring only these parts (all but kernels)
        parts: Vec<Part>,
    },
    /// Boot guests under tagvisor in QEMU; without options, the demo
    #[command(
        display_name = "tagvisor",
        override_usage = "scripts/run [OPTIONS] [-- QEMU ARGS...]",
        after_help = EXIT_CODES
    )]
    Run(RunOptions),
    /// Write what a boot loader starts: the bundle with configuration, kernels and initrds, and tagvisor's Image
    #[command(
        display_name = "tagvisor",
        override_usage = "scripts/bundle [OPTIONS] [--output FILE] [--image FILE]"
    )]
    Bundle(BundleOptions),
    /// Run every check and test; the last line is the count
    #[command(display_name = "tagvisor", override_usage = "scripts/test [--full]")]
    Test {
        /// Run the tests that take long too
        #[arg(long)]
        full: bool,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Task::Setup { parts } => set_up(&parts).map(|()| 0),
        Task::Run(options) => run(&options).map(|outcome| outcome.code()),
        Task::Bundle(options) => bundle(&options).map(|()| 0),
        Task::Test { full } => test(full).map(|good| u8::from(!good)),
    };
    ExitCode::from(result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        error_code(&error)
    }))
}

fn set_up(parts: &[Part]) -> anyhow::Result<()> {
    let cache = Cache::of_user()?;
    setup::ensure(
        &cache,
        if parts.is_empty() {
            &Part::USUAL
        } else {
            parts
        },
    )?;
    println!("{}", setup::describe(&cache)?);
    Ok(())
}

//! Counts what passed and failed.

/// The sums of all checks and tests.
#[derive(Debug, Default)]
pub struct Tally {
    passed: u64,
    failed: u64,
    names: Vec<String>,
    /// Failures that cargo's result lines told of.
    told: u64,
}

impl Tally {
    /// Counts one check of our own.
    pub fn add_check(&mut self, name: &str, passed: bool) {
        if passed {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.names.push(name.to_owned());
        }
    }

    /// Reads a line that `cargo test` printed: a test program's result, or the failure of a test.
    pub fn read(&mut self, line: &str) {
        if let Some((passed, failed)) = result_line(line) {
            self.passed += passed;
            self.failed += failed;
            self.told += failed;
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.names.push(name.to_owned());
        }
    }

    /// Ends cargo's tests: a failure that no line told of (a build error, a crash) is one too.
    pub fn end_of_cargo(&mut self, succeeded: bool) {
        if !succeeded && self.told == 0 {
            self.add_check("cargo test (see its messages above)", false);
        }
    }

    /// Whether everything passed, and something ran.
    #[must_use]
    pub const fn is_good(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    /// Prints the failures and, as the last line, the count.
    pub fn print(&self) {
        for name in &self.names {
            println!("failed: {name}");
        }
        println!("{}", self.last_line());
    }

    fn last_line(&self) -> String {
        format!("{} passed, {} failed", self.passed, self.failed)
    }
}

/// Reads `test result: ok. 12 passed; 0 failed; ...`.
fn result_line(line: &str) -> Option<(u64, u64)> {
    let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
    let mut counts = rest.split("; ").map(|part| part.split_once(' '));
    let mut next = |name: &str| {
        counts
            .next()
            .flatten()
            .filter(|(_, is)| *is == name)?
            .0
            .parse()
            .ok()
    };
    Some((next("passed")?, next("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_programs_are_summed() {
        let mut tally = Tally::default();
        tally.add_check("formatting", true);
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test a::c ... FAILED",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.05s",
            "test result: ok. 40 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 3.13s",
        ] {
            tally.read(line);
        }
        tally.end_of_cargo(false);
        assert_eq!(tally.last_line(), "43 passed, 1 failed");
        assert_eq!(tally.names, ["a::c"]);
        assert!(!tally.is_good());
    }

    #[test]
    fn a_failure_without_a_result_line_counts() {
        let mut tally = Tally::default();
        tally.read("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        tally.end_of_cargo(false);
        assert_eq!(tally.last_line(), "1 passed, 1 failed");
    }

    #[test]
    fn a_run_of_nothing_is_not_good() {
        let mut tally = Tally::default();
        tally.end_of_cargo(true);
        assert!(!tally.is_good());
    }
}

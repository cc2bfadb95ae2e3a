//! What came of a run: its exit code and why.

use serde::Deserialize;

/// How a run ended, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every guest powered itself off.
    Good,
    /// A guest ended otherwise.
    GuestEnded,
    /// Something could not be built or started.
    NotStarted,
    /// EL2 failed.
    El2Failed,
    /// The time limit passed.
    TimedOut,
    /// A signal ended the run.
    Signalled(i32),
}

impl Outcome {
    /// Returns the exit code that `--help` lists.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::GuestEnded => 1,
            Self::NotStarted => 3,
            Self::El2Failed => 4,
            Self::TimedOut => 124,
            Self::Signalled(signal) => {
                u8::try_from(signal).map_or(255, |signal| signal.saturating_add(128))
            }
        }
    }
}

/// The parts of EL2's report that decide about the outcome.
#[derive(Deserialize)]
struct Report {
    vms: Vec<Vm>,
    invariants: Invariants,
}

#[derive(Deserialize)]
struct Vm {
    name: String,
    end: Option<String>,
    reason: Option<String>,
}

impl Vm {
    /// How the guest ended, and why if that is known.
    fn epitaph(&self) -> String {
        let (name, end) = (&self.name, self.end.as_deref().unwrap_or_default());
        let ended = format!("guest {name} ended: {end}");
        match &self.reason {
            Some(reason) => format!("{ended}: {reason}"),
            None => ended,
        }
    }
}

#[derive(Deserialize)]
struct Invariants {
    broken: u64,
}

/// What decides about a run that ended by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evidence<'a> {
    /// EL2's report.
    pub report: Option<&'a str>,
    /// Whether a line said that EL2 stopped itself.
    pub saw_fatal_line: bool,
    /// Whether a person had a guest's console: then `stopped` is as good as `off`.
    pub interactive: bool,
}

/// Judges a run that ended by itself; says why if it was not good.
#[must_use]
pub fn judge(evidence: Evidence<'_>) -> (Outcome, Option<String>) {
    let failed = |why: &str| (Outcome::El2Failed, Some(why.to_owned()));
    if evidence.saw_fatal_line {
        return failed("EL2 stopped itself: its last lines above say why");
    }
    let Some(report) = evidence.report else {
        return failed("EL2 ended without a report: its last lines above may say why");
    };
    let report: Report = match serde_json::from_str(report) {
        Ok(report) => report,
        Err(error) => return failed(&format!("the report of EL2 cannot be read ({error})")),
    };
    if report.invariants.broken > 0 {
        return failed(&format!(
            "{} invariants were broken at EL2",
            report.invariants.broken
        ));
    }
    if report.vms.iter().any(|vm| vm.end.is_none()) {
        // A report that was asked for on the way, and none at the end.
        return failed("EL2 ended before its guests: its last lines above may say why");
    }
    let good = |end: &str| end == "off" || (end == "stopped" && evidence.interactive);
    let otherwise: Vec<String> = report
        .vms
        .iter()
        .filter(|vm| !vm.end.as_deref().is_some_and(good))
        .map(Vm::epitaph)
        .collect();
    match otherwise.as_slice() {
        [] => (Outcome::Good, None),
        reasons => (Outcome::GuestEnded, Some(reasons.join("\ntagvisor: "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(end: &str, broken: u64) -> String {
        format!(
            r#"{{"version":1,"vms":[{{"name":"a","end":"{end}"}}],"invariants":{{"checked":9,"broken":{broken}}}}}"#
        )
    }

    #[test]
    fn a_run_is_good_only_if_all_guests_are_off_and_el2_is_sound() {
        let judged = |report: &str, saw_fatal_line| {
            let report = Some(report).filter(|text| !text.is_empty());
            judge(Evidence {
                report,
                saw_fatal_line,
                interactive: false,
            })
        };
        assert_eq!(judged(&report("off", 0), false), (Outcome::Good, None));
        let (outcome, why) = judged(&report("reset", 0), false);
        assert_eq!(
            (outcome, why.as_deref()),
            (Outcome::GuestEnded, Some("guest a ended: reset"))
        );
        assert_eq!(judged(&report("stopped", 0), false).0, Outcome::GuestEnded);
        assert_eq!(judged(&report("off", 1), false).0, Outcome::El2Failed);
        assert_eq!(judged(&report("off", 0), true).0, Outcome::El2Failed);
        assert_eq!(judged("", false).0, Outcome::El2Failed);
        assert_eq!(judged("{", false).0, Outcome::El2Failed);
    }

    #[test]
    fn each_guest_that_ended_otherwise_is_named_with_the_reason() {
        let report = r#"{"version":1,"invariants":{"checked":9,"broken":0},"vms":[
            {"name":"a","end":"over_budget","reason":"more than 4 KiB of tags: raise tag_budget"},
            {"name":"b","end":"off","reason":null},
            {"name":"c","end":"reset"}]}"#;
        let evidence = Evidence {
            report: Some(report),
            ..Evidence::default()
        };
        let (outcome, why) = judge(evidence);
        assert_eq!((outcome, outcome.code()), (Outcome::GuestEnded, 1));
        assert_eq!(
            why.as_deref(),
            Some(
                "guest a ended: over_budget: more than 4 KiB of tags: raise tag_budget\n\
                 tagvisor: guest c ended: reset"
            )
        );
    }

    #[test]
    fn a_guest_that_a_person_stopped_is_as_good_as_off() {
        let report = report("stopped", 0);
        let evidence = Evidence {
            report: Some(&report),
            interactive: true,
            ..Evidence::default()
        };
        assert_eq!(judge(evidence), (Outcome::Good, None));
    }

    #[test]
    fn a_fatal_line_and_a_missing_end_tell_that_el2_failed_with_a_guests_console_too() {
        let (good, on_the_way) = (
            report("off", 0),
            report("off", 0).replace("\"off\"", "null"),
        );
        let judged = |report: Option<&str>, saw_fatal_line| {
            let evidence = Evidence {
                report,
                saw_fatal_line,
                interactive: true,
            };
            judge(evidence).0
        };
        assert_eq!(judged(Some(&good), false), Outcome::Good);
        assert_eq!(judged(Some(&good), true), Outcome::El2Failed);
        assert_eq!(judged(None, false), Outcome::El2Failed);
        assert_eq!(judged(Some(&on_the_way), false), Outcome::El2Failed);
    }

    #[test]
    fn exit_codes_are_those_that_help_lists() {
        let all = [
            Outcome::Good,
            Outcome::GuestEnded,
            Outcome::NotStarted,
            Outcome::El2Failed,
            Outcome::TimedOut,
            Outcome::Signalled(2),
        ];
        assert_eq!(all.map(Outcome::code), [0, 1, 3, 4, 124, 130]);
        for code in [0, 1, 3, 4, 124, 130] {
            assert!(
                super::super::options::EXIT_CODES.contains(&format!("\n  {code} ")),
                "{code}"
            );
        }
    }
}

use super::*;
use alloc::string::{String, ToString};
use proptest::prelude::*;

const NAMES: [&str; 3] = ["web", "worker", "db"];

fn parsed(line: &str) -> Result<Request<'_>, &[u8]> {
    parse(line.as_bytes())
}

fn request(verb: Verb, args: [&str; 2]) -> Result<Request<'_>, &[u8]> {
    Ok(Request { verb, args })
}

#[test]
fn each_command_is_understood_with_its_arguments() {
    for (line, verb, args) in [
        ("vm list", Verb::List, ["", ""]),
        ("  vm   create web ", Verb::Create, ["web", ""]),
        ("vm create web web-2", Verb::Create, ["web", "web-2"]),
        ("vm budget web 4M", Verb::Budget, ["web", "4M"]),
        ("vm destroy list", Verb::Destroy, ["list", ""]),
        ("attach db", Verb::Attach, ["db", ""]),
        ("trace", Verb::Trace, ["", ""]),
        ("trace db", Verb::Trace, ["db", ""]),
        ("log debug", Verb::Log, ["debug", ""]),
        ("quit", Verb::Quit, ["", ""]),
    ] {
        assert_eq!(parsed(line), request(verb, args), "{line}");
    }
    // The table is whole: each pattern is a command of its own.
    for &(verb, pattern, _) in COMMANDS {
        assert_eq!(parsed(pattern).map(|request| request.verb), Ok(verb));
    }
}

#[test]
fn what_is_no_command_is_answered_with_those_that_begin_so() {
    let answers = |line: &'static str| {
        help(parsed(line).unwrap_err())
            .map(|(pattern, _)| pattern)
            .collect::<Vec<_>>()
    };
    assert_eq!(answers("list"), [""; 0]);
    assert_eq!(answers("log"), ["log LEVEL"]);
    assert_eq!(answers("log info now"), ["log LEVEL"]);
    assert_eq!(answers("vm create a b c d e"), answers("vm"));
    assert!(answers("vm stop").contains(&"vm stop VM") && answers("vm stop").len() == 9);
    assert_eq!(help(b"").count(), COMMANDS.len());
}

/// A person, and the screen.
struct Person {
    editor: Editor,
    screen: String,
    choices: Vec<String>,
}

impl Person {
    fn new() -> Self {
        Self {
            editor: Editor::default(),
            screen: String::new(),
            choices: Vec::new(),
        }
    }

    fn key(&mut self, key: u8) -> Edit {
        let mut edit = self.editor.key(key);
        if edit == Edit::Complete {
            self.choices.clear();
            let choices = &mut self.choices;
            let added = self
                .editor
                .complete(&NAMES, &mut |word| choices.push(word.into()));
            edit = Edit::Add(added);
        }
        match edit {
            Edit::Add(count) => {
                let line = ascii(self.editor.line());
                self.screen += &line[line.len() - count..];
            }
            Edit::Erase(count) => self.screen.truncate(self.screen.len() - count),
            Edit::Enter | Edit::Leave => {
                let line = self.editor.take();
                assert_eq!(self.screen.as_bytes(), line);
                self.screen.clear();
            }
            Edit::Nothing | Edit::Complete => {}
        }
        edit
    }
}

/// What the line is after `keys`, and the answer to the last.
fn typed(keys: &str) -> (String, Edit, Vec<String>) {
    let mut person = Person::new();
    let answer = keys.bytes().fold(Edit::Nothing, |_, key| person.key(key));
    (
        ascii(person.editor.line()).to_string(),
        answer,
        person.choices,
    )
}

#[test]
fn keys_edit_the_line() {
    for (keys, line, answer) in [
        ("vm", "vm", Edit::Add(1)),
        ("vmx\x7f", "vm", Edit::Erase(1)),
        ("vmx\x08", "vm", Edit::Erase(1)),
        ("\x7f", "", Edit::Erase(0)),
        ("vm list\x15", "", Edit::Erase(7)),
        ("q\x1b[Au\x1b[3~\x1bOAi", "qui", Edit::Add(1)),
        ("vm\x01\x00", "vm", Edit::Nothing),
        ("vm\x03", "", Edit::Leave),
        ("vm list\r", "", Edit::Enter),
    ] {
        let (seen, last, _) = typed(keys);
        assert_eq!((&*seen, last), (line, answer), "{keys:?}");
    }
}

#[test]
fn a_line_has_an_end() {
    let (line, answer, _) = typed(&"x".repeat(1000));
    assert_eq!((line.len(), answer), (LINE_BYTES, Edit::Nothing));
}

#[test]
fn tab_completes_commands_and_names() {
    for (keys, line) in [
        ("v\t", "vm "),
        ("vm b\t", "vm budget "),
        ("vm re\t", "vm res"),
        ("vm st\tart w\t", "vm start w"),
        ("vm stop wo\t", "vm stop worker "),
        ("vm create d\t", "vm create db "),
        ("attach d\t", "attach db "),
        ("log t\t", "log trace "),
        ("log \tt\t", "log trace "),
        ("trace d\t", "trace db "),
        ("vm budget db \t", "vm budget db "),
        ("nonsense \t", "nonsense "),
        ("vm stop nobody\t", "vm stop nobody"),
    ] {
        assert_eq!(typed(keys).0, line, "{keys:?}");
    }
}

#[test]
fn where_tab_cannot_go_on_there_are_choices() {
    assert_eq!(typed("vm res\t").2, ["reset", "resume"]);
    assert_eq!(typed("attach w\t").2, ["web", "worker"]);
    let all = typed("\t").2;
    assert_eq!(all.iter().filter(|word| **word == "vm").count(), 1);
    assert_eq!(typed("vm stop nobody\t").2, [""; 0]);
}

#[test]
fn sizes_have_units() {
    for (text, bytes) in [
        ("4096", Some(4096)),
        ("256K", Some(256 << 10)),
        ("4m", Some(4 << 20)),
        ("1G", Some(1 << 30)),
        ("", None),
        ("K", None),
        ("-1", None),
        ("4MB", None),
        ("99999999999999999999", None),
        ("18446744073709551615G", None),
    ] {
        assert_eq!(size(text), bytes, "{text}");
    }
}

proptest! {
    /// What is echoed makes the screen show the line.
    #[test]
    fn the_screen_shows_the_line_after_any_keys(keys in prop::collection::vec(
        prop_oneof![b' '..=b'~', Just(b'\t'), Just(0x7f), Just(0x15), Just(b'\r'), any::<u8>()], 0..200,
    )) {
        let mut person = Person::new();
        for key in keys {
            person.key(key);
            prop_assert_eq!(person.screen.as_bytes(), person.editor.line());
            let _ = parse(person.editor.line());
        }
    }
}

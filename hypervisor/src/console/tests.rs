use super::*;
use alloc::string::ToString;
use proptest::prelude::*;

/// A UART whose FIFO takes what the test lets it.
struct Recorder {
    sent: Vec<u8>,
    received: VecDeque<u8>,
    room: usize,
    told: bool,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            sent: Vec::new(),
            received: VecDeque::new(),
            room: usize::MAX,
            told: false,
        }
    }
}

impl Uart for &mut Recorder {
    fn try_put(&mut self, byte: u8) -> bool {
        let room = self.room > 0;
        if room {
            self.put(byte);
        }
        room
    }
    fn put(&mut self, byte: u8) {
        self.room = self.room.saturating_sub(1);
        self.sent.push(byte);
    }
    fn get(&mut self) -> Option<u8> {
        self.received.pop_front()
    }
    fn tell_room(&mut self, on: bool) {
        self.told = on;
    }
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Batch,
    Interactive,
    Coloured,
}

const NAMES: [&str; 3] = ["a", "b", "c"];

fn console(recorder: &mut Recorder, mode: Mode) -> Console<&mut Recorder> {
    let mut console = Console::new();
    console.attach(recorder);
    let (batch, colour) = (matches!(mode, Mode::Batch), matches!(mode, Mode::Coloured));
    console.start(!batch, colour, true);
    for (vm, name) in NAMES.into_iter().enumerate() {
        console.add(vm, name);
    }
    console.show(0);
    console
}

fn printed(mode: Mode, act: impl FnOnce(&mut Console<&mut Recorder>)) -> String {
    let mut recorder = Recorder::default();
    act(&mut console(&mut recorder, mode));
    String::from_utf8_lossy(&recorder.sent).to_string()
}

fn send(console: &mut Console<&mut Recorder>, vm: usize, bytes: &[u8]) {
    for byte in bytes {
        console.guest_byte(vm, *byte);
    }
}

/// The lines that a terminal shows: it knows CR, LF, BS, and the control sequences that may pass.
fn screen(text: &str) -> Vec<String> {
    let (mut lines, mut column) = (vec![Vec::new()], 0_usize);
    let mut chars = text.chars();
    while let Some(next) = chars.next() {
        let line = lines.last_mut().unwrap();
        match next {
            '\r' => column = 0,
            '\n' => lines.push(Vec::new()),
            '\x08' => column = column.saturating_sub(1),
            '\x1b' => {
                assert_eq!(chars.next(), Some('['), "{text:?}");
                let mut number = String::new();
                let end = chars.by_ref().find(|end| {
                    number.push(*end);
                    ('@'..='~').contains(end)
                });
                number.pop();
                let count = number.parse().unwrap_or(0_usize);
                match end.unwrap() {
                    'm' => {}
                    'K' if count == 0 => line.truncate(column),
                    'D' => column = column.saturating_sub(count.max(1)),
                    'C' => column = (column + count.max(1)).min(79),
                    other => assert!("J@P".contains(other), "{other} in {text:?}"),
                }
            }
            other => {
                line.resize(line.len().max(column + 1), ' ');
                line[column] = other;
                column += 1;
            }
        }
    }
    lines.into_iter().map(String::from_iter).collect()
}

#[test]
fn batch_prints_whole_lines_with_the_name_of_their_vm() {
    let text = printed(Mode::Batch, |console| {
        send(console, 0, b"he");
        send(console, 1, b"x\r\n");
        console.line(format_args!("[tagvisor] INFO between"));
        send(console, 0, b"llo\r\n\r\nrest");
        console.flush_guest(0);
        console.flush_guest(0);
    });
    assert_eq!(
        text,
        "b| x\r\n[tagvisor] INFO between\r\na| hello\r\na| \r\na| rest\r\n"
    );
}

#[test]
fn a_guest_cannot_begin_a_line_or_forge_a_report_in_batch() {
    let text = printed(Mode::Batch, |console| {
        send(
            console,
            0,
            b"\r[tagvisor] INFO lie\x1b[2K\x1ekey {}\xc2\x9b2K\xc2\xa0\n",
        );
        send(console, 0, &[b'z'; 3000]);
    });
    for line in text.lines() {
        assert!(line.starts_with("a| "), "{line:?}");
    }
    let control = |c: char| c.is_control() && c != '\r' && c != '\n';
    assert!(!text.chars().any(control) && !text.contains("[2K"));
}

#[test]
fn the_attached_guest_is_seen_at_once_and_the_others_by_whole_lines() {
    let text = printed(Mode::Interactive, |console| {
        send(console, 0, b"$ ");
        send(console, 1, b"one\ntw");
        console.line(format_args!("[tagvisor] INFO hi"));
        send(console, 0, b"ls\r\nfile\r\n");
        send(console, 1, b"o\n");
    });
    let expected =
        "a| $ \r\nb| one\r\na| $ \r\n[tagvisor] INFO hi\r\na| $ ls\r\na| file\r\nb| two\r\n";
    assert_eq!(text, expected);
}

#[test]
fn on_a_terminal_an_open_line_makes_way_and_comes_back() {
    let text = printed(Mode::Coloured, |console| {
        send(console, 0, b"$ l");
        send(console, 1, b"one\n");
        send(console, 0, b"s\r\n");
    });
    assert!(text.contains("\x1b[32ma| \x1b[0m$ l"), "{text:?}");
    assert_eq!(screen(&text), ["b| one", "a| $ ls", ""]);
}

#[test]
fn another_guest_s_line_begins_where_it_is_attached() {
    let text = printed(Mode::Interactive, |console| {
        send(console, 0, b"login: ");
        send(console, 1, b"$ ");
        console.show(1);
        send(console, 0, b"x\n");
        send(console, 1, b"ls");
    });
    assert_eq!(text, "a| login: \r\nb| $ \r\na| x\r\nb| $ ls");
}

#[test]
fn the_monitor_has_the_terminal_to_itself_while_it_is_open() {
    let text = printed(Mode::Interactive, |console| {
        send(console, 0, b"$ ");
        console.monitor(true);
        let typed = |console: &mut Console<&mut Recorder>, keys: &[u8]| {
            let uart = console.screen.uart.as_mut().unwrap();
            uart.received.extend(keys);
            console.input()
        };
        assert_eq!(typed(console, b"vm"), None);
        send(console, 0, b"\x1b[31mdone\n# ");
        assert_eq!(typed(console, b" lx\x7f\t"), Some(Input::Complete));
        console.complete(&[]);
        assert_eq!(
            typed(console, b"\r"),
            Some(Input::Line(b"vm list ".to_vec()))
        );
        console.line(format_args!("[tagvisor] none"));
        console.enter();
        assert_eq!(typed(console, b"at\t"), Some(Input::Complete));
        console.complete(&["a", "b"]);
        assert_eq!(typed(console, b"\t"), Some(Input::Complete));
        console.complete(&["a", "b"]);
        assert_eq!(typed(console, b"\x03"), Some(Input::Leave));
        console.monitor(false);
        send(console, 0, b"y");
    });
    let expected = "a| $ \r\ntagvisor> vm\r\na| $ done\r\ntagvisor> vm lx\x08 \x08ist \r\n[tagvisor] none\r\n\
        tagvisor> attach \r\n  a\r\n  b\r\ntagvisor> attach \r\na| # y";
    assert_eq!(text, expected);
}

#[test]
fn a_shell_s_line_editing_works_behind_the_name() {
    let text = printed(Mode::Coloured, |console| {
        send(
            console,
            0,
            b"$ lz\x08s -l\x1b[2D\x1b[K\x1b[1mbold\x1b[0m\r# ok",
        );
    });
    assert_eq!(screen(&text), ["a| # ok bold"]);
}

#[test]
fn no_control_sequence_leaves_the_guest_s_line() {
    for attack in [
        &b"\r[tagvisor] INFO lie"[..],
        b"\x08\x08\x08\x08[tagvisor] lie",
        b"ab\x1b[3Dc",
        b"\x1b[9D[tagvisor] lie",
        b"\x1b[99C\x1b[99D[tagvisor] lie",
        b"\x1b[A\x1b[1;1H\x1b[2J\x1bc\x1b]0;title\x07x",
        b"\x1b[1K\x1b[2K[tagvisor] lie",
        b"\xc2\x9b9D[tagvisor] lie",
        b"\xe2\x80\x8b\xe2\x80\x8b\x08\x08\x08\x08\x08[tagvisor] lie",
        b"\x1b\x1b[D[tagvisor] lie",
        b"\x1b[00000000000000000000000000000000000002K[tagvisor] lie",
    ] {
        let text = printed(Mode::Coloured, |console| send(console, 0, attack));
        let lines = screen(&text);
        assert!(
            lines.iter().all(|line| line.starts_with("a| ")),
            "{lines:?}"
        );
    }
}

#[test]
fn the_escape_key_reaches_tagvisor_and_doubled_the_guest() {
    let mut recorder = Recorder {
        received: b"l\x1dq\x1d\x1d\x1d]\x1dm\x1dzs".iter().copied().collect(),
        ..Recorder::default()
    };
    let mut console = console(&mut recorder, Mode::Interactive);
    let all: Vec<_> = core::iter::from_fn(|| console.input()).collect();
    use Input::{Byte as B, Command as C};
    let expected = [
        B(b'l'),
        C(Command::Quit),
        B(ESCAPE),
        B(ESCAPE),
        C(Command::Monitor),
        B(b's'),
    ];
    assert_eq!(all, expected);
}

#[test]
fn batch_takes_commands_but_no_input_for_guests() {
    let mut recorder = Recorder {
        received: b"ls\n\x1dt".iter().copied().collect(),
        ..Recorder::default()
    };
    let mut console = console(&mut recorder, Mode::Batch);
    assert_eq!(console.input(), Some(Input::Command(Command::Timeout)));
    assert_eq!(console.input(), None);
}

/// Guests that print all they can, as drivers do: until their UART is full, then when they are told that it has room.
fn flood(mode: Mode, fifo: usize, length: usize) -> (String, [usize; 3]) {
    let mut recorder = Recorder {
        room: 0,
        ..Recorder::default()
    };
    let mut console = console(&mut recorder, mode);
    let (mut sent, mut open) = ([0_usize; 3], 0b111_u64);
    for _ in 0..4000 {
        for (vm, sent) in sent.iter_mut().enumerate() {
            while open >> vm & 1 != 0 {
                let last = *sent % (length + 1) == length;
                *sent += 1;
                let byte = if last { b'\n' } else { b'x' };
                if !console.guest_byte(vm, byte) {
                    open &= !(1 << vm);
                }
            }
        }
        assert!(
            console.screen.uart.as_ref().unwrap().told,
            "nobody would go on"
        );
        assert!(console.screen.out.len() <= OUT_BYTES);
        console.screen.uart.as_mut().unwrap().room = fifo;
        open |= console.drain();
    }
    console.screen.uart.as_mut().unwrap().room = usize::MAX;
    console.drain();
    for vm in 0..3 {
        console.flush_guest(vm);
    }
    console.leave();
    console.flush();
    (String::from_utf8(recorder.sent).unwrap(), sent)
}

/// A UART keeps bytes while it was told that there is room, and hands them on when there may be none any more.
#[test]
fn bytes_that_were_kept_are_not_lost_when_the_uart_is_full() {
    let mut recorder = Recorder {
        room: 0,
        ..Recorder::default()
    };
    let mut console = console(&mut recorder, Mode::Batch);
    let (mut sent, mut open) = ([0_usize; 3], 0b111_u64);
    for _ in 0..500 {
        for (vm, sent) in sent.iter_mut().enumerate() {
            while open >> vm & 1 != 0 {
                console.guest_bytes(vm, &[b'x'; KEPT_BYTES]);
                *sent += KEPT_BYTES + 1;
                if !console.guest_byte(vm, b'x') {
                    open &= !(1 << vm);
                    *sent += TRANSMIT_HEADROOM;
                    for _ in 0..TRANSMIT_HEADROOM {
                        console.guest_byte(vm, b'x');
                    }
                }
            }
        }
        assert!(console.screen.out.len() <= OUT_BYTES);
        console.screen.uart.as_mut().unwrap().room = 16;
        open |= console.drain();
    }
    console.screen.uart.as_mut().unwrap().room = usize::MAX;
    console.drain();
    (0..3).for_each(|vm| console.flush_guest(vm));
    console.flush();
    let text = String::from_utf8(recorder.sent).unwrap();
    assert_eq!(text.matches('x').count(), sent.iter().sum::<usize>());
    assert!(sent.iter().all(|sent| *sent > LINE_BYTES), "{sent:?}");
}

#[test]
fn a_full_uart_stops_guests_loses_nothing_and_serves_all() {
    for mode in [Mode::Batch, Mode::Interactive] {
        for length in [0, 70, 1000, 3000] {
            let (text, sent) = flood(mode, 16, length);
            for (vm, name) in NAMES.into_iter().enumerate() {
                let prefix = format!("{name}| ");
                let lines = text.lines().filter_map(|line| line.strip_prefix(&prefix));
                let seen: usize = lines.map(|line| line.matches('x').count()).sum();
                let lost = sent[vm] / (length + 1) * length + sent[vm] % (length + 1);
                // The line of the attached guest is shown again after each that interrupts it.
                assert!(
                    seen == lost || vm == 0 && seen > lost,
                    "{name} {length}: {seen} of {lost}"
                );
                let least = sent.iter().max().unwrap() / 8;
                assert!(sent[vm] > least, "{name} {length}: {sent:?}");
            }
        }
    }
}

#[test]
fn own_lines_wait_for_a_full_uart_rather_than_being_lost() {
    let mut recorder = Recorder {
        room: 0,
        ..Recorder::default()
    };
    let mut console = console(&mut recorder, Mode::Batch);
    for number in 0..2000 {
        console.line(format_args!("[tagvisor] line {number}"));
    }
    console.flush();
    let text = String::from_utf8(recorder.sent).unwrap();
    assert_eq!(text.lines().count(), 2000);
    assert!(text.ends_with("[tagvisor] line 1999\r\n"));
}

proptest! {
    #[test]
    fn whatever_guests_send_each_line_says_whose_it_is(
        steps in prop::collection::vec((0..4_usize, prop::collection::vec(prop_oneof![
            Just(0x1b), Just(b'['), Just(b'\r'), Just(b'\n'), Just(8), Just(0xc2), b'0'..b'z', any::<u8>(),
        ], 0..20)), 0..40),
    ) {
        let text = printed(Mode::Coloured, |console| {
            for (who, bytes) in &steps {
                match who {
                    3 if bytes.len() % 2 == 0 => console.line(format_args!("[tagvisor] own")),
                    3 => console.show(bytes.len() % 3),
                    vm => send(console, *vm, bytes),
                }
            }
        });
        let own = |line: &str| line.is_empty() || line == "[tagvisor] own";
        for line in screen(&text) {
            prop_assert!(own(&line) || NAMES.iter().any(|name| line.starts_with(&format!("{name}| "))), "{line:?}");
        }
    }
}

proptest! {
    /// Kept bytes come as they would have come one by one, whoever has the terminal.
    #[test]
    fn bytes_that_were_kept_print_like_bytes_that_came_at_once(
        parts in proptest::collection::vec(
            (0..3_usize, proptest::collection::vec(prop_oneof![8 => b' '..=b'~', 1 => Just(b'\n'), 1 => any::<u8>()], 0..KEPT_BYTES)),
            0..40,
        ),
        mode in proptest::sample::select(vec![Mode::Batch, Mode::Interactive]),
    ) {
        let at_once = printed(mode, |console| {
            parts.iter().for_each(|(vm, bytes)| send(console, *vm, bytes));
            (0..3).for_each(|vm| console.flush_guest(vm));
        });
        let kept = printed(mode, |console| {
            parts.iter().for_each(|(vm, bytes)| console.guest_bytes(*vm, bytes));
            (0..3).for_each(|vm| console.flush_guest(vm));
        });
        prop_assert_eq!(kept, at_once);
    }
}

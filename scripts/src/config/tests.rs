use super::*;
use crate::run::scratch::Scratch;

/// A folder with one file of each kind that a configuration can name.
fn files() -> Scratch {
    let dir = Scratch::new().unwrap();
    let mut image = vec![0; 4096];
    image[16..24].copy_from_slice(&(40u64 << 20).to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    put("Image", &image);
    put("raw", b"\0\0\0\x14");
    put("initrd", b"070701");
    put("empty", b"");
    put("gz", b"\x1f\x8b\x08");
    put("zst", b"\x28\xb5\x2f\xfd");
    put("xz", b"\xfd7zXZ\0");
    put("elf", b"\x7fELF");
    put("efi", b"MZ\0\0zimg");
    dir
}

fn parse(dir: &Scratch, text: &str) -> Result<Config, String> {
    let file = dir.path().join("c.toml");
    Config::parse(text, &file, Overrides::default()).map_err(|error| {
        error
            .to_string()
            .replace(&format!("{}/", dir.path().display()), "")
    })
}

const GOOD: &str = "[machine]\nmemory = \"1G\"\ncpus = 4\npolicy = \"lazy\"\n\
    eviction_rate = 100\ncompact_below = 40\nblock_size = \"8K\"\nregions = 2\n\
    [[vm]]\nname = \"a\"\nkernel = \"Image\"\ninitrd = \"initrd\"\ncmdline = \" console=ttyAMA0 \"\nmemory = \"512M\"\n\
    vcpus = 2\nmte = false\n[[vm]]\nname = \"b\"\nkernel = \"raw\"\nmemory = 4194304\n\
    tag_budget = \"64K\"\npolicy = \"eager\"\ncpus = [3, 0]\n";

#[test]
fn all_keys_are_understood_and_paths_are_relative_to_the_file() {
    let dir = files();
    let config = parse(&dir, GOOD).unwrap();
    assert_eq!(
        (config.memory_bytes, config.cpus, config.policy),
        (1 << 30, 4, Policy::Lazy)
    );
    assert_eq!(
        (config.eviction_rate, config.compact_below),
        (Some(100), Some(40))
    );
    assert_eq!((config.block_bytes, config.regions), (8192, 2));
    let own = |guest: &Guest| (guest.tag_budget, guest.policy);
    assert_eq!(own(&config.guests[0]), (None, Policy::Auto));
    assert_eq!(own(&config.guests[1]), (Some(65536), Policy::Eager));
    assert_eq!(
        (config.guests[0].cpu_mask, config.guests[1].cpu_mask),
        (None, Some(0b1001))
    );
    assert_eq!(config.guests[0].kernel, dir.path().join("Image"));
    assert_eq!(config.guests[0].cmdline, "console=ttyAMA0");
    assert_eq!((config.guests[0].vcpus, config.guests[0].mte), (2, false));
    assert_eq!(
        (
            config.guests[1].memory_bytes,
            config.guests[1].vcpus,
            config.guests[1].mte
        ),
        (4 << 20, 1, true)
    );
}

#[test]
fn the_command_line_wins_over_the_file() {
    let dir = files();
    let overrides = Overrides {
        memory_bytes: Some(2 << 30),
        cpus: Some(8),
        policy: Some(Policy::Static),
    };
    let config = Config::parse(GOOD, &dir.path().join("c.toml"), overrides).unwrap();
    assert_eq!(
        (config.memory_bytes, config.cpus, config.policy),
        (2 << 30, 8, Policy::Static)
    );
    assert_eq!(
        config.guests[1].policy,
        Policy::Auto,
        "--policy is for all guests, or a machine that is static could not be tried"
    );
    let too_small = Overrides {
        memory_bytes: Some(1 << 20),
        ..overrides
    };
    let error = Config::parse(GOOD, &dir.path().join("c.toml"), too_small).unwrap_err();
    assert_eq!(error.place, "--memory");
}

/// `[[vm]]` with name, kernel and memory, and more lines after them (from line 5).
fn vm(more: &str) -> String {
    format!("[[vm]]\nname = \"a\"\nkernel = \"Image\"\nmemory = \"64M\"\n{more}")
}

fn with_kernel(kernel: &str) -> String {
    vm("").replace("Image", kernel)
}

fn expect(table: &[(String, &str)]) {
    let dir = files();
    for (text, expected) in table {
        let message = parse(&dir, text).unwrap_err();
        assert_eq!(&message, expected, "for\n{text}");
    }
}

#[test]
fn mistakes_of_form_are_named_with_their_line() {
    expect(&[
        (
            String::new(),
            "c.toml: no guest: add a [[vm]] section with name, kernel and memory",
        ),
        (
            "[machine\n".into(),
            "c.toml:1: unclosed table, expected `]`",
        ),
        (
            "[machine]\nram = \"2G\"\n".into(),
            "c.toml:2: unknown field `ram`, expected one of `memory`, `cpus`, `policy`, `eviction_rate`, \
             `compact_below`, `block_size`, `regions`",
        ),
        (
            "[board]\n".into(),
            "c.toml:1: unknown field `board`, expected `machine` or `vm`",
        ),
        (
            vm("tags = 3\n"),
            "c.toml:5: unknown field `tags`, expected one of `name`, `kernel`, `initrd`, `cmdline`, `memory`, `vcpus`, `cpus`, `mte`, \
             `tag_budget`, `policy`, `autostart`",
        ),
        (
            "[machine]\nmemory = \"2T\"\n".into(),
            "c.toml:2: `2T` is not a size such as \"512M\" or \"2G\"",
        ),
        (
            "[machine]\nmemory = true\n".into(),
            "c.toml:2: invalid type: boolean `true`, expected a size such as \"512M\" or \"2G\"",
        ),
        (
            "[machine]\npolicy = \"fast\"\n".into(),
            "c.toml:2: unknown variant `fast`, expected one of `auto`, `static`, `eager`, `lazy`",
        ),
        (
            "[[vm]]\nname = \"a\"\nmemory = \"64M\"\n".into(),
            "c.toml:1: missing field `kernel`",
        ),
    ]);
}

#[test]
fn mistakes_of_size_are_named_with_their_line_and_a_remedy() {
    let sizes = "c.toml:2: a machine has 128M to 64G of memory in steps of 32M: choose such a size";
    expect(&[
        ("[machine]\nmemory = \"64M\"\n".into(), sizes),
        ("[machine]\nmemory = \"1025M\"\n".into(), sizes),
        (
            "[machine]\ncpus = 0\n".into(),
            "c.toml:2: a machine has 1 to 64 CPUs: choose such a number",
        ),
        (
            vm("vcpus = 9\n"),
            "c.toml:5: a guest has 1 to 8 vCPUs: choose such a number",
        ),
        (
            vm("cpus = [0, 2]\n"),
            "c.toml:5: guest a is to run on CPU 2, the machine has CPUs 0 to 1: choose among these",
        ),
        (
            vm("cpus = []\n"),
            "c.toml:5: guest a is to run on no CPU: name one or leave cpus out",
        ),
        (
            vm("").replace("64M", "3M"),
            "c.toml:4: a guest's memory is a multiple of 2M, not 3M: round it up",
        ),
        (
            vm("").replace("64M", "40M"),
            "c.toml:4: the guest has 40M, its kernel and initrd alone need 42M: give it more",
        ),
        (
            vm("").replace("64M", "2G"),
            "c.toml:4: the guests have 2G of memory and 64M of tag storage together, a machine of 2G has room for less than 2G: \
             lower the guests' memory or tag_budget, or raise the machine's",
        ),
    ]);
}

#[test]
fn mistakes_of_the_tag_regions_are_named_with_their_line_and_a_remedy() {
    let blocks = "c.toml:2: block_size is bytes of which 4K, 8K, 12K up to 32K is a multiple, such as \"8K\": \
                  choose such a size";
    expect(&[
        (
            "[machine]\nregions = 3\n".into(),
            "c.toml:2: a machine has 1 or 2 tag regions, or 0 if its tags are hidden: choose such a number",
        ),
        ("[machine]\nblock_size = 0\n".into(), blocks),
        ("[machine]\nblock_size = 9\n".into(), blocks),
        ("[machine]\nblock_size = \"64K\"\n".into(), blocks),
        ("[machine]\nblock_size = \"8G\"\n".into(), blocks),
        (
            "[machine]\ncompact_below = 101\n".into(),
            "c.toml:2: compact_below is a percentage, 0 to 100: choose such a number",
        ),
        (
            "[machine]\neviction_rate = -1\n".into(),
            "c.toml:2: invalid value: integer `-1`, expected u32",
        ),
    ]);
}

#[test]
fn blocks_are_of_any_size_that_the_machine_is_made_for() {
    let dir = files();
    for bytes in [1, 7, 512, 0x1000, 0x2000, 0x3000, 0x8000] {
        let text = format!("[machine]\nblock_size = {bytes}\n{}", vm(""));
        assert_eq!(parse(&dir, &text).unwrap().block_bytes, bytes);
    }
}

#[test]
fn mistakes_of_tag_budgets_are_named_with_line_guest_and_a_remedy() {
    expect(&[
        (
            vm("tag_budget = \"8M\"\n"),
            "c.toml:5: the tag_budget of guest a is 8M, the tags of all its 64M take 2M: lower it or leave it out",
        ),
        (
            vm("tag_budget = 5000\n"),
            "c.toml:5: the tag_budget of guest a is not a multiple of 4K: round it up",
        ),
        (
            vm("mte = false\ntag_budget = \"1M\"\n"),
            "c.toml:6: guest a has a tag_budget and mte = false, so no tags: remove one of the two",
        ),
        (
            vm("tag_budget = \"much\"\n"),
            "c.toml:5: `much` is not a size such as \"512M\" or \"2G\"",
        ),
    ]);
    let dir = files();
    for good in [
        "tag_budget = \"2M\"",
        "tag_budget = 0",
        "mte = false\ntag_budget = 0",
    ] {
        parse(&dir, &vm(good)).unwrap();
    }
}

#[test]
fn static_is_for_all_guests_or_none() {
    let other = "c.toml:7: guest a has policy eager, the machine static, but static is for all or none: \
                 remove this line or set another policy under [machine]";
    let alone = |machine: &str| {
        format!(
            "c.toml:7: guest a has policy static, the machine {machine}, but static is for all or none: \
             remove this line or set policy = \"static\" under [machine]"
        )
    };
    let with = |machine: &str, guest: &str| {
        format!(
            "[machine]\npolicy = \"{machine}\"\n{}policy = \"{guest}\"\n",
            vm("")
        )
    };
    expect(&[
        (with("static", "eager"), other),
        (with("static", "lazy"), &other.replace("eager", "lazy")),
        (with("auto", "static"), &alone("auto")),
        (with("lazy", "static"), &alone("lazy")),
    ]);
    let dir = files();
    for (machine, guest) in [
        ("static", "static"),
        ("static", "auto"),
        ("lazy", "eager"),
        ("auto", "lazy"),
    ] {
        parse(&dir, &with(machine, guest)).unwrap();
    }
}

#[test]
fn what_guests_do_not_tag_is_memory_for_others_but_not_under_static() {
    let dir = files();
    let two = |machine: &str, budget: &str| {
        let tagged = vm(budget).replace("64M", "1G");
        let plain = vm("mte = false\n")
            .replace("64M", "1016M")
            .replace("\"a\"", "\"b\"");
        parse(&dir, &format!("[machine]\n{machine}{tagged}{plain}")).map(drop)
    };
    assert_eq!(two("", "tag_budget = \"4M\"\n"), Ok(()), "2044M of 2G");
    let error = two("", "").unwrap_err();
    assert!(
        error.contains("2040M of memory and 32M of tag storage together"),
        "{error}"
    );
    for machine in ["policy = \"static\"\n", "regions = 0\n"] {
        let error = two(machine, "tag_budget = \"4M\"\n").unwrap_err();
        assert!(
            error
                .contains("2040M of memory together, a machine of 2G has room for less than 1984M"),
            "{error}"
        );
    }
}

#[test]
fn guests_too_large_for_qemus_machine_may_fit_another() {
    let dir = files();
    let file = dir.path().join("c.toml");
    let load = |memory: &str| {
        fs::write(&file, vm("").replace("64M", memory)).unwrap();
        let config = Config::load_for_any_machine(&file, Overrides::default());
        config.map(|config| config.guests[0].memory_bytes)
    };
    assert_eq!(load("32G"), Ok(32 << 30));
    let error = load("64G").unwrap_err().text;
    assert_eq!(
        error,
        "a guest has at most 63G of memory, not 64G: lower it"
    );
}

#[test]
fn mistakes_of_names_and_files_are_named_with_their_line_and_a_remedy() {
    let form = "tagvisor takes an arm64 Image or a raw image";
    let cases = [
        (with_kernel("gz"), format!("c.toml:3: kernel gz is compressed with gzip, {form}: unpack it with gunzip")),
        (with_kernel("zst"), format!("c.toml:3: kernel zst is compressed with zstd, {form}: unpack it with unzstd")),
        (with_kernel("xz"), format!("c.toml:3: kernel xz is compressed with xz, {form}: unpack it with unxz")),
        (with_kernel("elf"), format!("c.toml:3: kernel elf is an ELF, {form}: make it flat with objcopy -O binary")),
        (
            with_kernel("efi"),
            format!(
                "c.toml:3: kernel efi is an EFI program (compressed, or of another architecture), {form}: \
                 use the uncompressed Image of an arm64 build"
            ),
        ),
        (with_kernel("empty"), "c.toml:3: kernel empty is empty: build it again".to_owned()),
        (
            with_kernel("none"),
            "c.toml:3: kernel none cannot be read (No such file or directory (os error 2)): check the path".to_owned(),
        ),
        (vm("initrd = \".\"\n"), "c.toml:5: initrd . is not a file: check the path".to_owned()),
        (vm("") + &vm(""), "c.toml:6: two guests are named `a`: give each its own name".to_owned()),
        (
            vm("").replace("\"a\"", "\"a b\""),
            "c.toml:2: `a b` cannot be a guest's name: use 1 to 32 letters, digits, - _ . and not `tagvisor`".to_owned(),
        ),
        (
            vm("cmdline = \"a\\nb\"\n"),
            "c.toml:5: the command line has a line break or another control character: write it on one line".to_owned(),
        ),
        (
            vm(&format!("cmdline = \"{}\"\n", "x".repeat(2048))),
            "c.toml:5: the command line has 2048 bytes, Linux takes 2047: shorten it".to_owned(),
        ),
    ];
    let table: Vec<(String, &str)> = cases
        .iter()
        .map(|(text, message)| (text.clone(), message.as_str()))
        .collect();
    expect(&table);
}

#[test]
fn the_demo_has_four_guests_on_four_gibibytes_or_on_what_is_asked_for() {
    let dir = files();
    let demo = |memory_bytes| {
        let overrides = Overrides {
            memory_bytes,
            ..Overrides::default()
        };
        Config::demo(
            &dir.path().join("Image"),
            &dir.path().join("initrd"),
            overrides,
        )
    };
    let usual = demo(None).unwrap();
    assert_eq!((usual.memory_bytes, usual.cpus), (4 << 30, 2));
    let names: Vec<&str> = usual.guests.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["tagged", "budget", "plain", "lent"]);
    for guest in &usual.guests {
        let part = format!("tagvisor.part={}", guest.name);
        assert!(guest.cmdline.ends_with(&part), "{}", guest.cmdline);
        let nomte = guest.cmdline.contains("tagvisor.nomte");
        assert_ne!(guest.mte, nomte, "{}", guest.name);
    }
    assert_eq!(demo(Some(1 << 30)).unwrap().memory_bytes, 1 << 30);
    assert_eq!(demo(Some(512 << 20)).unwrap_err().place, "--memory");
}

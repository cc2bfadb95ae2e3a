//! Writes the device trees that the fuzzer starts from, those of platform's tests, to the folder named.

#[path = "../../../platform/tests/common/mod.rs"]
mod common;

use std::path::Path;

fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: seeds FOLDER, for example corpus/dtb");
        std::process::exit(2);
    };
    std::fs::create_dir_all(&folder)?;
    for (name, mut board) in [
        ("virt", common::virt()),
        ("tagged", common::tagged()),
        ("tagged-older", common::tagged_older()),
    ] {
        std::fs::write(Path::new(&folder).join(name), board.dtb())?;
        // One more with a reservation and a range to translate through.
        board.reserve(common::RAM, 0x1000);
        let uart = board.at("/").remove_child("pl011@9000000");
        let bus = [
            ("#address-cells", common::cells(&[2])),
            ("#size-cells", common::cells(&[2])),
            ("ranges", common::pairs(&[0, 0, 1 << 32])),
        ];
        board.add("/", common::node("soc", &bus));
        if let Some(uart) = uart {
            board.add("/soc", uart);
        }
        std::fs::write(Path::new(&folder).join(format!("{name}-bus")), board.dtb())?;
    }
    Ok(())
}

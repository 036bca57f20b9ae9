//! `cargo xtask build-ebpf`.

use std::{collections::BTreeMap, env::consts::ARCH, fs, path::Path};

use anyhow::Context as _;
use ebpf_build::{Build, Endian, Toolchain};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind, SymbolKind};

use crate::cargo::{target_dir, workspace};

/// Builds both objects below the workspace's target directory and prints, for each, the size of
/// the file, its programs with their sections and instruction counts, and its maps.
pub fn run() -> anyhow::Result<()> {
    let toolchain = Toolchain::find()?;
    println!("{}\n{}", toolchain.compiler, toolchain.linker);
    let objects = Build {
        workspace: &workspace(),
        target_dir: &target_dir().join("ebpf"),
        endian: Endian::host(),
        arch: ARCH,
    }
    .run(&toolchain)?;
    for warning in &objects.warnings {
        eprint!("{warning}");
    }
    for object in [&objects.cgroup, &objects.netns] {
        print_object(object)?;
    }
    Ok(())
}

/// Bytes of one BPF instruction.
const INSTRUCTION: u64 = 8;

fn print_object(path: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = object::File::parse(&*bytes)
        .with_context(|| format!("{} is no object file", path.display()))?;
    println!("\n{} ({} bytes)", path.display(), bytes.len());

    let sections: BTreeMap<usize, &str> = file
        .sections()
        .filter(|section| section.kind() == SectionKind::Text && section.size() > 0)
        .filter_map(|section| Some((section.index().0, section.name().ok()?)))
        .collect();
    for symbol in file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text)
    {
        let Some(section) = symbol
            .section_index()
            .and_then(|index| sections.get(&index.0))
        else {
            continue;
        };
        let name = symbol.name().unwrap_or("?");
        // Functions outside a program's own section are subprograms, called by several.
        let kind = if *section == ".text" {
            "subprogram"
        } else {
            "program"
        };
        println!(
            "  {kind:<10} {name:<24} {section:<24} {:>5} instructions",
            symbol.size() / INSTRUCTION
        );
    }
    let maps = file
        .sections()
        .filter(|section| matches!(section.name(), Ok("maps" | ".maps")));
    for section in maps {
        for symbol in file
            .symbols()
            .filter(|symbol| symbol.section_index() == Some(section.index()))
        {
            if let Ok(name) = symbol.name()
                && !name.is_empty()
            {
                println!("  {:<10} {name}", "map");
            }
        }
    }
    Ok(())
}

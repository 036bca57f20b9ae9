//! Builds the BPF programs, so that a plain `cargo build` makes a complete agent.

fn main() -> anyhow::Result<()> {
    ebpf_build::build()
}

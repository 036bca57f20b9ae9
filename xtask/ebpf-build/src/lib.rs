//! b
/// b
pub fn build() -> anyhow::Result<()> { Ok(()) }

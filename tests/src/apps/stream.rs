//! Bytes that both ends of a connection know.

use std::io::{self, Read};

use blake3::{Hasher, OutputReader};

/// The first `length` bytes of a fixed pseudo-random sequence (BLAKE3's extended output), so that
/// a byte lost, repeated or moved is noticed.
#[derive(Debug)]
pub struct Stream(io::Take<OutputReader>);

impl Stream {
    /// The sequence from its beginning.
    #[must_use]
    pub fn new(length: u64) -> Self {
        Self(Hasher::new().finalize_xof().take(length))
    }

    /// The hash of the first `length` bytes, in hexadecimal digits.
    ///
    /// # Errors
    /// Never, in truth: reading is from memory.
    pub fn hash(length: u64) -> io::Result<String> {
        Ok(hash(Self::new(length))?.hash)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

/// Reads to the end, and tells how much there was and its hash.
///
/// # Errors
/// Those of reading.
pub fn hash(reader: impl Read) -> io::Result<super::wire::Received> {
    let mut hasher = Hasher::new();
    hasher.update_reader(reader)?;
    Ok(super::wire::Received {
        bytes: hasher.count(),
        hash: hasher.finalize().to_hex().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_byte_and_a_swap_are_noticed() {
        let mut bytes = Vec::new();
        Stream::new(100_000).read_to_end(&mut bytes).unwrap();
        let whole = hash(&*bytes).unwrap();
        assert_eq!(whole.bytes, 100_000);
        assert_eq!(whole.hash, Stream::hash(100_000).unwrap());
        assert_ne!(hash(&bytes[1..]).unwrap().hash, whole.hash);
        bytes.swap(10, 50_000);
        assert_ne!(hash(&*bytes).unwrap().hash, whole.hash);
    }
}

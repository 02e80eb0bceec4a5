//! Which virtual shard a client belongs to.
//!
//! The hash is part of the table's schema: it is written into every `CONFIG` item and must never change without
//! raising `META.schema`.

use sha2::{Digest, Sha256};

use crate::client::ClientId;

/// The first eight bytes of SHA-256(id), big-endian, modulo the number of shards.
pub fn shard_of(id: &ClientId, shards: u32) -> u32 {
    let digest = Sha256::digest(id.as_str().as_bytes());
    let head = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    u32::try_from(head % u64::from(shards.max(1))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_one() {
        // printf 1234 | sha256sum begins 03ac674216f3e15c; 0x03ac674216f3e15c mod 16 = 0xc.
        let id = ClientId::new("1234").expect("a valid id");
        assert_eq!(shard_of(&id, 16), 0xc);
        assert_eq!(shard_of(&id, 1), 0);
    }

    #[test]
    fn shards_fill_evenly() {
        let mut counts = [0_u32; 16];
        for n in 0..16_000 {
            let id = ClientId::new(format!("client-{n}")).expect("a valid id");
            counts[shard_of(&id, 16) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}

//! Which virtual shard a client belongs to, and which member of the fleet a shard belongs to.
//!
//! Rendezvous hashing: every member weighs every shard, and the highest weight owns it. So each task computes the
//! same division from the same list of members, without talking to anybody; and a member that comes or goes moves
//! its own shards and no others.
//!
//! Both hashes are part of the table's schema: the first is written into every `CONFIG` item, the second has to be the
//! same in two versions that share a table. Neither changes without raising `META.schema`.

use sha2::{Digest, Sha256};

use crate::client::ClientId;

/// The first eight bytes of SHA-256(id), big-endian, modulo the number of shards.
pub fn shard_of(id: &ClientId, shards: u32) -> u32 {
    let head = head(id.as_str().as_bytes());
    u32::try_from(head % u64::from(shards.max(1))).unwrap_or_default()
}

/// Who of these members owns a shard: the one with the highest weight; a tie, by name. `None` where there is nobody.
pub fn owner_of<'a>(shard: u32, members: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    members.max_by_key(|member| (weight(shard, member), *member))
}

/// The first eight bytes, big-endian, of SHA-256 over the shard in decimal, `|`, and the member's incarnation.
fn weight(shard: u32, member: &str) -> u64 {
    head(format!("{shard}|{member}").as_bytes())
}

fn head(text: &[u8]) -> u64 {
    Sha256::digest(text).iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_weight_is_the_published_one() {
        // printf '3|a' | sha256sum
        assert_eq!(weight(3, "a"), 0xa8d5_d9d9_0aae_3fd5);
        assert_eq!(owner_of(3, std::iter::empty()), None);
    }

    #[test]
    fn members_share_evenly() {
        let members: Vec<_> = (0..4).map(|n| format!("member-{n}")).collect();
        let mut counts = std::collections::BTreeMap::<&str, u32>::new();
        for shard in 0..4096 {
            *counts.entry(owner_of(shard, members.iter().map(String::as_str)).expect("one")).or_default() +=
                1;
        }
        assert!(counts.len() == 4 && counts.values().all(|count| (900..1150).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn a_member_that_leaves_moves_its_own_shards_alone(
            members in proptest::collection::btree_set("[a-z0-9]{1,8}", 2..6),
            gone in 0_usize..6,
            shard in 0_u32..256,
        ) {
            let gone = members.iter().nth(gone % members.len()).expect("within").clone();
            let before = owner_of(shard, members.iter().map(String::as_str));
            let after = owner_of(shard, members.iter().filter(|m| **m != gone).map(String::as_str));
            prop_assert!(before == Some(gone.as_str()) || before == after);
        }
    }

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

//! Both metadata stores against one model; sled's contract against damage.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn options(folder: &Path) -> SledOptions {
    SledOptions { folder: folder.to_owned(), tuning: SledTuning::default() }
}

fn open(folder: &Path) -> SledStore {
    SledStore::open(&options(folder)).unwrap().0
}

fn arbitrary_batches() -> impl Strategy<Value = Vec<Vec<MetaOp>>> {
    let key = prop::collection::vec(97u8..100, 1..3);
    let op = prop_oneof![
        4 => (key.clone(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(k, v)| MetaOp::Put(k, v)),
        2 => key.clone().prop_map(MetaOp::Remove),
        1 => prop::collection::vec(97u8..100, 0..2).prop_map(MetaOp::RemovePrefix),
    ];
    prop::collection::vec(prop::collection::vec(op, 0..8), 0..12)
}

fn apply_to_model(model: &mut BTreeMap<Vec<u8>, Vec<u8>>, ops: &[MetaOp]) {
    for op in ops {
        match op.clone() {
            MetaOp::Put(k, v) => {
                model.insert(k, v);
            }
            MetaOp::Remove(k) => {
                model.remove(&k);
            }
            MetaOp::RemovePrefix(p) => model.retain(|k, _| !k.starts_with(&p)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn both_stores_behave_like_a_map(batches in arbitrary_batches()) {
        let dir = tempfile::tempdir().unwrap();
        let sled = open(dir.path());
        let mem = MemStore::new();
        let mut model = BTreeMap::new();
        for (index, ops) in (1u64..).zip(&batches) {
            apply_to_model(&mut model, ops);
            for store in [&sled as &dyn MetaStore, &mem] {
                store.commit(MetaBatch { ops: ops.clone(), applied: index }).unwrap();
                let all: BTreeMap<_, _> = store.scan_prefix(b"").unwrap().into_iter().collect();
                prop_assert_eq!(&all, &model);
                prop_assert_eq!(store.applied_index().unwrap(), index);
                prop_assert_eq!(store.get(b"a").unwrap(), model.get(&b"a"[..]).cloned());
            }
        }
    }
}

#[test]
fn content_and_index_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("meta");
    let (store, found) = SledStore::open(&options(&folder)).unwrap();
    assert_eq!(found, Found::New);
    store.commit(MetaBatch::new(7).put(*b"k", *b"v").clone()).unwrap();
    store.flush().unwrap();
    drop(store);
    let (store, found) = SledStore::open(&options(&folder)).unwrap();
    assert_eq!(found, Found::Existing);
    assert_eq!(store.get(b"k").unwrap().as_deref(), Some(&b"v"[..]));
    assert_eq!(store.applied_index().unwrap(), 7);
}

#[test]
fn bad_batches_are_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let sled = open(dir.path());
    let mem = MemStore::new();
    for store in [&sled as &dyn MetaStore, &mem] {
        store.commit(MetaBatch::new(5)).unwrap();
        let long = MetaBatch::new(6).put(*b"ok", *b"1").put(*b"k", vec![0; VALUE_MAX + 1]).clone();
        assert!(matches!(store.commit(long), Err(MetaError::Refused { .. })));
        let empty = MetaBatch::new(6).put(*b"", *b"1").clone();
        assert!(matches!(store.commit(empty), Err(MetaError::Refused { .. })));
        let back = MetaBatch::new(4).put(*b"k", *b"1").clone();
        assert_eq!(store.commit(back), Err(MetaError::IndexBack { offered: 4, applied: 5 }));
        assert_eq!(store.scan_prefix(b"").unwrap(), []);
        store.commit(MetaBatch::new(6).put(*b"big", vec![7; VALUE_MAX]).clone()).unwrap();
        store.flush().unwrap();
    }
}

#[test]
fn a_full_store_refuses_puts_and_takes_removals() {
    let dir = tempfile::tempdir().unwrap();
    let tuning = SledTuning { size_limit: 0, ..SledTuning::default() };
    let (store, _) =
        SledStore::open(&SledOptions { folder: dir.path().join("m"), tuning }).unwrap();
    let put = store.commit(MetaBatch::new(1).put(*b"k", *b"v").clone());
    assert!(matches!(put, Err(MetaError::Full { limit: 0, .. })), "{put:?}");
    store.commit(MetaBatch::new(1).remove(*b"k").clone()).unwrap();
}

#[test]
fn an_unfinished_snapshot_file_is_removed_before_the_open() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let left_over = dir.path().join("snap.00000000000000AA.generating");
    std::fs::write(&left_over, b"half").unwrap();
    let (_store, found) = SledStore::open(&options(dir.path())).unwrap();
    assert_eq!(found, Found::Existing);
    assert!(!left_over.exists());
}

/// Fills a store, then overwrites `db` by `damage`.
fn damaged(damage: impl Fn(&mut Vec<u8>)) -> (tempfile::TempDir, Found) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("meta");
    let store = open(&folder);
    for i in 0..200u64 {
        let key = format!("key/{i}");
        store.commit(MetaBatch::new(i).put(key, vec![3; 300]).clone()).unwrap();
    }
    store.flush().unwrap();
    drop(store);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("snap.") {
            std::fs::remove_file(path).unwrap();
        }
    }
    let db = folder.join("db");
    let mut bytes = std::fs::read(&db).unwrap();
    damage(&mut bytes);
    std::fs::write(&db, bytes).unwrap();
    let (store, found) = SledStore::open(&options(&folder)).unwrap();
    // Whatever happened, the store that comes back works.
    store.commit(MetaBatch::new(1000).put(*b"again", *b"1").clone()).unwrap();
    store.flush().unwrap();
    (dir, found)
}

#[test]
fn a_damaged_store_is_moved_aside_and_an_empty_one_opened() {
    // Our checksum catches what sled's own would have to.
    let (dir, found) = damaged(|bytes| {
        let len = bytes.len();
        for at in (0..len).step_by(97) {
            bytes[at] ^= 0x5a;
        }
    });
    let Found::Rebuilt { moved_to, .. } = found else { panic!("not noticed: {found:?}") };
    assert!(moved_to.exists() && moved_to.starts_with(dir.path()));
}

#[test]
fn a_value_whose_bytes_changed_is_found_by_its_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("meta");
    let store = open(&folder);
    store.commit(MetaBatch::new(1).put(*b"k", *b"v").clone()).unwrap();
    // Past our wrapper, as a bug in sled would.
    store.db_for_test().insert(b"\x01k", b"\x01\0\0\0\0v").unwrap();
    assert_eq!(store.get(b"k"), Err(MetaError::Damaged { key: "\\x01k".to_owned() }));
    store.flush().unwrap();
    drop(store);
    let (_, found) = SledStore::open(&options(&folder)).unwrap();
    assert!(matches!(found, Found::Rebuilt { .. }), "{found:?}");
}

#[test]
fn a_value_of_a_newer_release_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.db_for_test().insert(b"\x01k", b"\x09\0\0\0\0v").unwrap();
    let newer = MetaError::NewerVersion { key: "\\x01k".to_owned(), version: 9, supported: 1 };
    assert_eq!(store.get(b"k"), Err(newer.clone()));
    store.flush().unwrap();
    drop(store);
    // Not damage: the files stay where they are.
    assert_eq!(SledStore::open(&options(dir.path())).map(|_| ()), Err(newer));
}

//! File trees: made, copied, and compared byte by byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every file below a folder, by its relative path, with its content.
pub type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// Reads the tree below `root`; build folders and git's are left out.
#[must_use]
pub fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("read a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_symlink() || matches!(name, "target" | ".git" | ".dev" | "lost+found") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = fs::read(&path).expect("read a file");
                tree.insert(path.strip_prefix(root).expect("below the root").into(), content);
            }
        }
    }
    tree
}

/// Writes the tree below `root`.
pub fn write(root: &Path, tree: &Tree) {
    for (path, content) in tree {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
        fs::write(path, content).expect("write a file");
    }
}

/// `count` files of 1 to 64 KiB in folders of 100, whose content depends on `seed` alone.
#[must_use]
pub fn generate(seed: u64, count: usize) -> Tree {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        // xorshift64*: enough to tell one file's bytes from another's.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let mut tree = Tree::new();
    for number in 0..count {
        let words = 128 + usize::try_from(next() % 8064).unwrap();
        let content = (0..words).flat_map(|_| next().to_le_bytes()).collect();
        tree.insert(PathBuf::from(format!("{}/{number}", number / 100)), content);
    }
    tree
}

/// Panics at the first file that is missing, new, or different.
pub fn assert_same(wanted: &Tree, found: &Tree) {
    for (path, content) in wanted {
        let got = found.get(path).unwrap_or_else(|| panic!("{} is gone", path.display()));
        assert!(got == content, "{} differs", path.display());
    }
    assert_eq!(wanted.len(), found.len(), "there are files that nobody wrote");
}

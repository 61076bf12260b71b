//! Holds the imports between our crates one way, and the cores pure.
//!
//! The list below is the law; a `Cargo.toml` that asks for an edge that is not here fails. Adding
//! one is its own commit with a reason. Siblings never see each other, cores never see a runtime.

use super::Report;
use super::metadata::{Metadata, Package};

/// Each crate of the workspace and the crates of the workspace it may import.
const ALLOWED: &[(&str, &[&str])] = &[
    ("ashlar-types", &[]),
    ("ashlar-proto", &["ashlar-types"]),
    ("ashlar-env", &["ashlar-types"]),
    ("ashlar-log", &["ashlar-types", "ashlar-env"]),
    ("ashlar-node-core", &["ashlar-types"]),
    ("ashlar-controlplane-core", &["ashlar-types"]),
    ("ashlar-client-core", &["ashlar-types"]),
    ("ashlar-zone-raft", &["ashlar-types", "ashlar-env", "ashlar-log"]),
    (
        "ashlar-node",
        &["ashlar-types", "ashlar-proto", "ashlar-env", "ashlar-log", "ashlar-node-core"],
    ),
    (
        "ashlar-controlplane",
        &[
            "ashlar-types",
            "ashlar-proto",
            "ashlar-env",
            "ashlar-log",
            "ashlar-controlplane-core",
            "ashlar-zone-raft",
        ],
    ),
    ("ashlar-client", &["ashlar-types", "ashlar-proto", "ashlar-env", "ashlar-client-core"]),
    (
        "ashlar-sim",
        // The members run whole: their own log on a simulated disk, their own messages.
        &[
            "ashlar-types",
            "ashlar-proto",
            "ashlar-env",
            "ashlar-log",
            "ashlar-node-core",
            "ashlar-controlplane-core",
            "ashlar-zone-raft",
            "ashlar-controlplane",
            "ashlar-client-core",
        ],
    ),
    // Says the protocol again in its own words, so that a mistake in the cores is not repeated.
    ("ashlar-model", &[]),
    ("ashlar-bench", &["ashlar-types", "ashlar-client"]),
    (
        "ashlar-cli",
        &[
            "ashlar-types",
            "ashlar-proto",
            "ashlar-env",
            "ashlar-node",
            "ashlar-controlplane",
            "ashlar-client",
            "ashlar-sim",
            "ashlar-bench",
        ],
    ),
    ("ashlar-tests", &["ashlar-types", "ashlar-env", "ashlar-proto", "ashlar-client"]),
    ("xtask", &[]),
];

/// Crates that decide and never do. They may link only what is `no_std` and has no effects.
const PURE: &[&str] =
    &["ashlar-types", "ashlar-node-core", "ashlar-controlplane-core", "ashlar-client-core"];

/// The third-party crates a pure crate may link.
const PURE_MAY_LINK: &[&str] = &["bytes", "thiserror", "tracing"];

/// Edges of the workspace against the list, and purity of the cores.
pub(crate) fn check(metadata: &Metadata, report: &mut Report) {
    for package in metadata.ours() {
        check_package(package, metadata, report);
    }
    for (name, _) in ALLOWED {
        if !metadata.ours().any(|package| package.name == *name) {
            report.problems.push(format!("edge list names {name}, which is not in the workspace"));
        }
    }
}

fn check_package(package: &Package, metadata: &Metadata, report: &mut Report) {
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == package.name) else {
        report.problems.push(format!(
            "crate {} is not in the edge list (xtask/src/tidy/edges.rs)",
            package.name
        ));
        return;
    };
    let pure = PURE.contains(&package.name.as_str());
    for dependency in &package.dependencies {
        let name = dependency.name.as_str();
        let ours = metadata.ours().any(|other| other.name == name);
        if ours && !allowed.contains(&name) {
            report.problems.push(format!(
                "{} imports {name}: the edge is not allowed (design.md section 13)",
                package.name
            ));
        }
        let shipped = !dependency.test_only && !dependency.build_only;
        if pure && !ours && shipped && !PURE_MAY_LINK.contains(&name) {
            report
                .problems
                .push(format!("{} links {name}: a core decides and has no effects", package.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::metadata::Dependency;
    use super::*;

    fn problems_of(name: &str, dependencies: &[&str]) -> Vec<String> {
        let mut metadata = Metadata::default();
        for (ours, _) in ALLOWED {
            let dependencies = if *ours == name { dependencies } else { &[] };
            metadata.packages.insert(
                (*ours).to_owned(),
                Package {
                    name: (*ours).to_owned(),
                    dependencies: dependencies
                        .iter()
                        .map(|dependency| Dependency {
                            name: (*dependency).to_owned(),
                            test_only: false,
                            build_only: false,
                        })
                        .collect(),
                    ..Package::default()
                },
            );
        }
        let mut report = Report::default();
        check(&metadata, &mut report);
        report.problems
    }

    #[test]
    fn an_edge_between_siblings_is_refused() {
        assert_eq!(problems_of("ashlar-node", &["ashlar-client"]).len(), 1);
        assert_eq!(problems_of("ashlar-node-core", &["ashlar-client-core"]).len(), 1);
        assert!(problems_of("ashlar-node", &["ashlar-node-core", "ashlar-env"]).is_empty());
    }

    #[test]
    fn a_core_with_a_runtime_is_refused() {
        assert_eq!(problems_of("ashlar-node-core", &["tokio"]).len(), 1);
        assert!(problems_of("ashlar-node-core", &["bytes"]).is_empty());
        assert!(problems_of("ashlar-node", &["tokio"]).is_empty());
    }

    #[test]
    fn the_allowed_edges_have_no_cycle() {
        // A crate may only import crates that stand before it in some order: peel off the leaves.
        let mut left: Vec<(&str, Vec<&str>)> =
            ALLOWED.iter().map(|(name, edges)| (*name, edges.to_vec())).collect();
        while !left.is_empty() {
            let leaves: Vec<&str> =
                left.iter().filter(|(_, edges)| edges.is_empty()).map(|(name, _)| *name).collect();
            assert!(!leaves.is_empty(), "a cycle among {left:?}");
            left.retain(|(name, _)| !leaves.contains(name));
            for (_, edges) in &mut left {
                edges.retain(|edge| !leaves.contains(edge));
            }
        }
    }
}

//! What we link from outside: licences, banned crates, sources.
//!
//! The same rules stand in `deny.toml` for those who have cargo-deny; this check needs nothing but
//! cargo. It does not know advisories: that needs a database.

use super::Report;
use super::licence;
use super::metadata::{Metadata, Package};

/// The only registry.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Crates that must not be linked, each with the reason.
const BANNED: &[(&str, &str)] = &[
    ("openssl", "needs a C library at build time; TLS is rustls"),
    ("openssl-sys", "needs a C library at build time; TLS is rustls"),
    ("native-tls", "TLS is rustls"),
    ("aws-lc-rs", "one crypto provider only: ring"),
    ("async-std", "one runtime only: tokio"),
    ("smol", "one runtime only: tokio"),
];

/// Crates of which exactly one version may be linked.
const ONE_VERSION: &[&str] = &["tokio", "prost", "tonic", "rustls", "sled"];

/// The crates that may link rust-protobuf 2 (RUSTSEC-2024-0437): raft and its own build. Bytes from
/// outside are parsed by our own prost messages and never reach it.
const MAY_LINK_PROTOBUF_2: &[&str] = &["raft", "raft-proto", "protobuf-build", "protobuf-codegen"];

/// Licences, bans and sources of every linked package.
pub(crate) fn check(metadata: &Metadata, report: &mut Report) {
    for package in metadata.packages.values() {
        check_package(package, report);
    }
    for name in ONE_VERSION {
        let versions: Vec<&str> = metadata
            .packages
            .values()
            .filter(|package| package.name == *name)
            .map(|package| package.version.as_str())
            .collect();
        if versions.len() > 1 {
            report
                .problems
                .push(format!("{name} is linked in several versions: {}", versions.join(", ")));
        }
    }
    for (dependent, dependency) in &metadata.links {
        check_protobuf(metadata.packages.get(dependent), metadata.packages.get(dependency), report);
    }
    report.notes.push(format!("supply: {} packages linked", metadata.packages.len()));
}

fn check_package(package: &Package, report: &mut Report) {
    let Package { name, version, .. } = package;
    if !package.licence.as_deref().is_some_and(licence::is_allowed) {
        let licence = package.licence.as_deref().unwrap_or("none stated");
        report.problems.push(format!("{name} {version}: licence not on the list: {licence}"));
    }
    if let Some((_, reason)) = BANNED.iter().find(|(banned, _)| banned == name) {
        report.problems.push(format!("{name} {version} is banned: {reason}"));
    }
    match package.source.as_deref() {
        None | Some(REGISTRY) => {}
        Some(other) => {
            report.problems.push(format!("{name} {version} comes from {other}, not crates.io"));
        }
    }
}

fn check_protobuf(dependent: Option<&Package>, dependency: Option<&Package>, report: &mut Report) {
    let (Some(dependent), Some(dependency)) = (dependent, dependency) else { return };
    if dependency.name == "protobuf"
        && dependency.version.starts_with("2.")
        && !MAY_LINK_PROTOBUF_2.contains(&dependent.name.as_str())
    {
        report.problems.push(format!(
            "{} links protobuf {}: only raft and its build may (RUSTSEC-2024-0437)",
            dependent.name, dependency.version
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, licence: &str, source: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            licence: Some(licence.to_owned()),
            source: Some(source.to_owned()),
            dependencies: Vec::new(),
        }
    }

    fn problems_of(packages: Vec<Package>, links: &[(&str, &str)]) -> Vec<String> {
        let mut metadata = Metadata::default();
        for package in packages {
            metadata.packages.insert(format!("{}@{}", package.name, package.version), package);
        }
        metadata.links =
            links.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
        let mut report = Report::default();
        check(&metadata, &mut report);
        report.problems
    }

    #[test]
    fn banned_crates_copyleft_licences_and_git_sources_are_refused() {
        assert_eq!(problems_of(vec![package("openssl", "0.10.0", "MIT", REGISTRY)], &[]).len(), 1);
        assert_eq!(problems_of(vec![package("a", "1.0.0", "GPL-3.0", REGISTRY)], &[]).len(), 1);
        assert_eq!(
            problems_of(vec![package("a", "1.0.0", "MIT", "git+https://x/y")], &[]).len(),
            1
        );
        assert!(problems_of(vec![package("a", "1.0.0", "MIT", REGISTRY)], &[]).is_empty());
    }

    #[test]
    fn a_second_tokio_is_refused() {
        let two = vec![
            package("tokio", "1.0.0", "MIT", REGISTRY),
            package("tokio", "0.2.0", "MIT", REGISTRY),
        ];
        assert_eq!(problems_of(two, &[]).len(), 1);
    }

    #[test]
    fn only_raft_may_link_the_old_protobuf() {
        let packages = || {
            vec![
                package("protobuf", "2.28.0", "MIT", REGISTRY),
                package("raft", "0.7.0", "Apache-2.0", REGISTRY),
                package("stray", "1.0.0", "MIT", REGISTRY),
            ]
        };
        assert!(problems_of(packages(), &[("raft@0.7.0", "protobuf@2.28.0")]).is_empty());
        assert_eq!(problems_of(packages(), &[("stray@1.0.0", "protobuf@2.28.0")]).len(), 1);
    }
}

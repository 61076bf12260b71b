//! Reads a scenario's file. Every field is checked; what is not known is refused by name.

use super::{Aim, Calls, Expect, Load, Moment, Networks, Scenario, ScenarioError, Step, Way, span};
use ashlar_types::limit::CHUNK_BYTES_FLOOR;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// Time that faults have when a scenario says nothing.
const STORM: Duration = Duration::from_secs(6);

/// What a step does. The words in comments are what its fields mean then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verb {
    /// The process dies (SIGKILL) and comes back after `for`.
    Kill,
    /// The process ends in order and comes back after `for`.
    Stop,
    /// The machine loses power: nobody refuses, nothing that was not synced is left.
    PowerOff,
    /// The same in the middle of a write: what was written last ends within a sector. A member's machine
    /// loses power at one of the next writes of its log.
    Tear,
    /// The process stands still for so long.
    Pause,
    /// Nothing passes between `of` and `from`; connections break.
    Cut,
    /// Nothing passes; everything arrives when it is over.
    Clog,
    /// Nothing passes and nobody notices before TCP's patience ends.
    HalfOpen,
    /// Messages of the host take `amount` times as long.
    Slow,
    /// Messages between `of` and `from` take `amount` times as long.
    SlowWires,
    /// One message in `amount` between `of` and `from` is lost.
    LoseOnWires,
    /// One message in `amount` is lost anywhere.
    Lose,
    /// Syncs of the journal, and reads, wait.
    StallDisk,
    /// The data core of a node stands still for so long; its beats go on.
    StallCore,
    /// Reads of the disk fail.
    FailReads,
    /// A sync fails: the process ends, as it must, and comes back after `for`.
    FailSync,
    /// A written block of the first chunk does not fit its checksum any more.
    Rot,
    /// One block of the first chunk rots in every replica in sync.
    RotEverywhere,
    /// The disk loses the next content that it is given, and says nothing.
    LoseWrite,
    /// The disk writes the next content that it is given to another place.
    MisdirectWrite,
    /// Reads of the disk get for so long what is there now.
    ShowOld,
    /// A block of the first chunk has other content, with a good checksum.
    Differ,
    /// The disk has no room for content; a member's has none at all.
    FillDisk,
    /// The disk has little room left: what needs space waits.
    ShortOfSpace,
    /// The process dies and comes back after `for`; records that were synced are gone.
    LoseRecords,
    /// The process of a member dies and comes back after `for`; a byte of its log has turned.
    RotLog,
    /// The disk is replaced by an empty one; the process comes back after `for`.
    NewDisk,
    /// The disk of `of` is put into the node of `from` for so long, and `of` has an empty one.
    PutDisk,
    /// The process gets no descriptor for so long: it accepts and opens no connection and no file. What
    /// is open goes on.
    NoDescriptors,
    /// The volume is attached elsewhere by force; the former client goes on writing for `for`.
    Reattach,
    /// The client's process dies and comes back under its own attachment.
    RestartClient,
    /// An operator asks for a salvage, and states that whoever keeps chunks from being served and is
    /// down is fenced.
    Salvage,
    /// An operator asks for a node to be drained, until the zone agrees.
    Drain,
    /// An operator cancels all drains.
    CancelDrain,
    /// An operator asks for a volume that is larger by `amount` chunks, until the zone agrees.
    Grow,
    /// The nodes come that were not there at first (`late`).
    Join,
    /// The wall clock of a member jumps by `amount` seconds, and back after `for`.
    JumpClock,
    /// The disk of a member is lost: it is removed, another is added and joins.
    ReplaceMember,
    /// The monotonic clock of a node runs `amount` per mille fast.
    Drift,
    /// Nothing passes between the zone that faults strike and the others.
    CutOff,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    about: String,
    faults: Vec<String>,
    storm: Option<String>,
    #[serde(default)]
    beyond: bool,
    #[serde(default = "one")]
    zones: u32,
    calls: Option<CallsText>,
    #[serde(default = "usual_nodes")]
    nodes: u32,
    #[serde(default = "one")]
    stores: u32,
    #[serde(default)]
    racks: u32,
    #[serde(default)]
    late: u32,
    #[serde(default = "usual_chunks")]
    chunks: u64,
    #[serde(default = "usual_chunk_kib")]
    chunk_kib: u64,
    room_mib: Option<u64>,
    scrub: Option<String>,
    #[serde(default)]
    load: LoadText,
    step: Vec<StepText>,
    #[serde(default)]
    expect: ExpectText,
}

const fn one() -> u32 {
    1
}

const fn usual_nodes() -> u32 {
    4
}

const fn usual_chunks() -> u64 {
    3
}

const fn usual_chunk_kib() -> u64 {
    CHUNK_BYTES_FLOOR >> 10
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CallsText {
    per_second: u64,
    creates: u64,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LoadText {
    depth: Option<usize>,
    hot_blocks: Option<u64>,
    reads: Option<u64>,
    zeroes: Option<u64>,
    blocks_max: Option<u64>,
    per_second: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct StepText {
    at: Option<String>,
    on: Option<Moment>,
    busy: Option<bool>,
    fault: Verb,
    of: Option<Aim>,
    from: Option<Aim>,
    r#for: Option<String>,
    networks: Option<NetworksText>,
    way: Option<WayText>,
    amount: Option<u64>,
    times: Option<u32>,
    every: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum NetworksText {
    Both,
    Primary,
    Replication,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WayText {
    Both,
    Out,
    In,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ExpectText {
    #[serde(default)]
    lines: Vec<String>,
    #[serde(default)]
    at_least: BTreeMap<String, u64>,
    #[serde(default)]
    at_most: BTreeMap<String, u64>,
}

/// Reads one file.
pub(super) fn read(name: &'static str, text: &str) -> Result<Scenario, ScenarioError> {
    scenario_of(name, text).map_err(|what| ScenarioError { name, what })
}

fn scenario_of(name: &'static str, text: &str) -> Result<Scenario, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    if !(1..=8).contains(&file.stores) {
        return Err(format!("stores = {}: 1 to 8 are possible", file.stores));
    }
    if !(3..=16).contains(&file.nodes) {
        return Err(format!("nodes = {}: 3 to 16 are possible", file.nodes));
    }
    if file.racks > file.nodes {
        return Err(format!("racks = {}: there are {} nodes", file.racks, file.nodes));
    }
    if file.late + 3 > file.nodes {
        return Err(format!("late = {}: 3 of the {} nodes must be there", file.late, file.nodes));
    }
    let whole = file.chunk_kib.is_power_of_two() && file.chunk_kib >= usual_chunk_kib();
    if !whole || !(1..=1_024).contains(&file.chunks) {
        return Err("chunks: 1 to 1024, of a power of two of KiB, 64 at least".into());
    }
    if ![1, 3].contains(&file.zones) {
        return Err(format!("zones = {}: 1 or 3 are possible", file.zones));
    }
    let calls = file.calls.map(|calls| Calls {
        per_second: calls.per_second.clamp(1, 10_000),
        creates: calls.creates.min(90),
    });
    if calls.is_some() && file.zones == 1 {
        return Err("calls: a zone alone has no callers; say zones = 3".into());
    }
    let steps = file.step.into_iter().map(step_of).collect::<Result<Vec<_>, _>>()?;
    if steps.is_empty() {
        return Err("a scenario has at least one step".into());
    }
    let usual = Load::USUAL;
    let load = Load {
        depth: file.load.depth.unwrap_or(usual.depth),
        hot_blocks: file.load.hot_blocks.unwrap_or(usual.hot_blocks),
        reads: file.load.reads.unwrap_or(usual.reads),
        zeroes: file.load.zeroes.unwrap_or(usual.zeroes),
        blocks_max: file.load.blocks_max.unwrap_or(usual.blocks_max),
        per_second: file.load.per_second.or(usual.per_second),
    };
    let no_pace = load.per_second.is_some_and(|pace| pace == 0);
    if load.reads + load.zeroes > 100 || load.hot_blocks == 0 || load.blocks_max == 0 || no_pace {
        return Err("load: reads and zeroes are at most 100 together, all else at least 1".into());
    }
    let ExpectText { lines, at_least, at_most } = file.expect;
    Ok(Scenario {
        name,
        about: file.about,
        faults: file.faults,
        storm: file.storm.as_deref().map_or(Ok(STORM), span)?,
        beyond: file.beyond,
        zones: file.zones,
        calls,
        nodes: file.nodes,
        stores: file.stores,
        racks: file.racks,
        late: file.late,
        chunks: file.chunks,
        chunk_bytes: file.chunk_kib << 10,
        room_bytes: file.room_mib.map(|mib| mib << 20),
        scrub: file.scrub.as_deref().map(span).transpose()?,
        load,
        steps,
        expect: Expect { lines, at_least, at_most },
    })
}

fn step_of(text: StepText) -> Result<Step, String> {
    let time = |given: Option<String>, usual: u64| match given {
        Some(given) => span(&given),
        None => Ok(Duration::from_millis(usual)),
    };
    Ok(Step {
        at: time(text.at, 500)?,
        on: text.on,
        busy: text.busy.unwrap_or(true),
        verb: text.fault,
        of: text.of.unwrap_or(Aim::Primary),
        from: text.from.unwrap_or(Aim::Everyone),
        length: time(text.r#for, 1_000)?,
        networks: match text.networks.unwrap_or(NetworksText::Both) {
            NetworksText::Both => Networks::Both,
            NetworksText::Primary => Networks::Primary,
            NetworksText::Replication => Networks::Replication,
        },
        way: match text.way.unwrap_or(WayText::Both) {
            WayText::Both => Way::Both,
            WayText::Out => Way::Out,
            WayText::In => Way::In,
        },
        amount: text.amount.unwrap_or(10),
        times: text.times.unwrap_or(1),
        every: time(text.every, 1_000)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "about = 'x'\nfaults = ['N33']\n[[step]]\nfault = 'pause'\nfor = '2s'\n";

    #[test]
    fn a_scenario_is_read_and_what_is_wrong_is_named() {
        let scenario = read("good", GOOD).unwrap();
        assert_eq!(scenario.steps.len(), 1);
        assert_eq!(scenario.steps[0].length, Duration::from_secs(2));
        let wrong = [
            (GOOD.replace("pause", "meteor"), "meteor"),
            (GOOD.replace("'2s'", "'soon'"), "soon"),
            (GOOD.replace("for", "during"), "during"),
            ("nodes = 2\n".to_owned() + GOOD, "nodes = 2"),
            ("zones = 2\n".to_owned() + GOOD, "zones = 2"),
            ("racks = 5\n".to_owned() + GOOD, "racks = 5"),
            ("late = 2\n".to_owned() + GOOD, "late = 2"),
            ("chunk-kib = 65\n".to_owned() + GOOD, "power of two"),
            (GOOD.to_owned() + "[calls]\nper-second = 5\ncreates = 1\n", "zones = 3"),
            ("about = 'x'\nfaults = []\nstep = []\n".to_owned(), "at least one step"),
            (GOOD.to_owned() + "[load]\nreads = 101\n", "at most 100"),
        ];
        for (text, word) in wrong {
            let error = read("wrong", &text).unwrap_err().to_string();
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}

//! Opening a store: making a new one, refusing a foreign one, replay, doubting what is damaged.
//!
//! Damage never keeps a store shut as long as it is known whose it is: the replicas concerned, all of
//! them if nothing proves less, are marked suspect, durably before anything that shows the damage is
//! changed. What leaves no names (no superblock, no checkpoint to begin the replay with) is set aside
//! whole, under other file names, and an empty store with another id is begun: to the zone it is an
//! exchanged disk.
//!
//! Files of the folder: `super`, `journal`, `map`, `data`. A new store's `super` gets its name last,
//! so a folder without it holds nothing; with content in `data` it is damage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ashlar_env::dice::Dice;
use ashlar_env::disk::{AlignedBuf, Disk, DiskError, DiskFile, IoEngine, OpenHow, write_zeros};
use ashlar_node_core::durable::DurableState;
use ashlar_node_core::record::Record;
use ashlar_types::{ChunkId, ReplicaId, StartNumber, StoreId};

use super::apply::{Applier, write_superblock};
use super::commit::Committer;
use super::doubt::Doubt;
use super::format::{PAGE, SLOT_BYTES, Superblock, Unreadable, VERSION, as_u64, as_usize};
use super::journal::{Cursor, Journal, ReplayEnd, Replayed, replay, wipe};
use super::map::{SlotMap, slots_of};
use super::overlay::Layer;
use super::place::{Bits, Claims, add_claim, void_claims};
use super::reader::Reader;
use super::shared::{Shared, note_record};
use super::{OpenError, Owner, Reporter, StoreOptions};

/// A period with several requests of 1 MiB must fit twice; tests get by with less.
const JOURNAL_BYTES_MIN: u64 = if cfg!(test) { 256 << 10 } else { 16 << 20 };
/// Replay holds the whole journal in memory.
const JOURNAL_BYTES_MAX: u64 = 1 << 30;

const SUPER: &str = "super";
const SUPER_NEW: &str = "super.new";
const JOURNAL: &str = "journal";
const MAP: &str = "map";
const DATA: &str = "data";

/// The working parts of an open store.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) shared: Arc<Shared>,
    pub(crate) committer: Committer,
    pub(crate) applier: Applier,
    pub(crate) reader: Reader,
    pub(crate) state: DurableState,
    pub(crate) superblock: Superblock,
    pub(crate) new: bool,
}

/// Opens or makes the store in `disk`'s folder. One whose content cannot be named any more is set
/// aside, and another begun in its place.
pub(crate) fn open(
    disk: &dyn Disk,
    options: &StoreOptions,
    owner: Owner,
    dice: &mut dyn Dice,
    reporter: &Reporter,
) -> Result<Parts, OpenError> {
    match open_found(disk, options, owner, dice, reporter) {
        Err(damage @ OpenError::Damaged { .. }) => {
            set_aside(disk, &damage)?;
            open_found(disk, options, owner, dice, reporter)
        }
        other => other,
    }
}

/// Gives the files of a store other names; nothing is deleted. The superblock goes last: until then
/// each start goes on with it, under the same number.
fn set_aside(disk: &dyn Disk, damage: &OpenError) -> Result<(), OpenError> {
    let names = disk.list()?;
    let has = |name: &str| names.iter().any(|n| n == name);
    const PARTS: [&str; 4] = [JOURNAL, MAP, DATA, SUPER];
    let aside = |name: &str, number: u32| format!("{name}.damaged-{number}");
    // After a crash in the middle the same number again: what has moved is not there any more.
    let free = |n: &u32| !PARTS.iter().any(|name| has(name) && has(&aside(name, *n)));
    let Some(number) = (1u32..).find(free) else { return Err(damage.clone()) };
    tracing::error!(
        error = %damage, number,
        "the store is set aside as *.damaged-{number}, and kept; another one is begun in its place. \
         Its replicas are gone until they are filled again; remove it when nobody needs it any more"
    );
    for name in PARTS.into_iter().filter(|name| has(name)) {
        disk.rename(name, &aside(name, number))?;
    }
    disk.sync_dir()?;
    Ok(())
}

/// A file of a store that has a superblock.
fn part(disk: &dyn Disk, name: &'static str) -> Result<Arc<dyn DiskFile>, OpenError> {
    disk.open(name, OpenHow::EXISTING.direct()).map_err(|error| match error {
        DiskError::NotFound { .. } => {
            OpenError::Damaged { what: name, at: 0, why: "the file is missing" }
        }
        other => OpenError::Disk(other),
    })
}

fn open_found(
    disk: &dyn Disk,
    options: &StoreOptions,
    owner: Owner,
    dice: &mut dyn Dice,
    reporter: &Reporter,
) -> Result<Parts, OpenError> {
    let names = disk.list()?;
    let new = !names.iter().any(|n| n == SUPER);
    if new {
        make(disk, options, owner, dice, &names)?;
    }
    let super_file = disk.open(SUPER, OpenHow::EXISTING.direct())?;
    let mut superblock = read_superblock(&*super_file)?;
    check_owner(&superblock, owner)?;
    let journal_file = part(disk, JOURNAL)?;
    let map_file = part(disk, MAP)?;
    let data_file = part(disk, DATA)?;
    let capacity = slots(options.capacity_bytes)?;
    // Capacity may be raised by configuration, and lowered down to what was ever used.
    superblock.capacity_slots = capacity.max(superblock.slots_used);
    let mut doubt = superblock.doubt;
    let mut map = SlotMap::load(&*map_file, &superblock, &mut doubt)?;

    let mut replayed = Replay::default();
    let content = read_journal(&*journal_file, superblock.journal_bytes)?;
    let mark = Cursor {
        end: superblock.tail,
        number: superblock.tail_number,
        chain: superblock.tail_chain,
    };
    let end = replay(content, superblock.store, mark, &mut |item| replayed.take(item))?;
    // What replay accepted must not vanish later: it may sit in a volatile cache so far. So may the
    // name of the superblock, if the process that made the store was killed before it synced that.
    journal_file.sync_data()?;
    if !new {
        disk.sync_dir()?;
    }
    replayed.damaged.iter().for_each(|chunk| doubt.add(*chunk));
    map.set_grown(grown(&*data_file, &*map_file)?);
    let data_slots = u32::try_from(data_file.size()? / SLOT_BYTES).unwrap_or(u32::MAX);
    map.occupy(&replayed.claims, data_slots, &mut doubt);
    if end.has_gap {
        doubt.add_gap();
    }
    superblock.doubt = doubt;
    superblock.map_digest = map.digest();
    raise_start(&*super_file, &mut superblock, end.start.max(options.start_above))?;
    map.wipe_void(&*map_file)?;
    wipe(&*journal_file, superblock.journal_bytes, &end.left_over)?;

    replayed.end_checkpoint();
    let ReplayEnd { cursor, .. } = end;
    let Replay { mut state, replicas, layer, claims, .. } = replayed;
    doubt.mark(&mut state);
    let journal_bytes = superblock.journal_bytes;
    let shared = Shared::new(data_file, map_file, map, replicas, (layer, claims), journal_bytes);
    // The sooner the marks are in a checkpoint, the fewer later replicas a crash would mark too.
    shared.lock().checkpoint_wanted = doubt.is_open();
    regain(&shared)?;
    let shared = Arc::new(shared);
    let journal = Journal::new(
        journal_file,
        journal_bytes,
        superblock.store,
        superblock.start,
        cursor,
        superblock.tail,
    );
    // A descriptor of its own for the journal's thread: see `place::write_placed`.
    let own = (part(disk, DATA)?, IoEngine::start(options.engine)?);
    let committer = Committer::new(shared.clone(), journal, own, state.clone(), reporter.clone());
    let applier = Applier {
        shared: shared.clone(),
        super_file,
        superblock,
        engine: IoEngine::start(options.engine)?,
        spare: Vec::new(),
        reporter: reporter.clone(),
    };
    let reader = Reader { shared: shared.clone(), engine: IoEngine::start(options.engine)? };
    Ok(Parts { shared, committer, applier, reader, state, superblock, new })
}

/// What replay comes to.
#[derive(Debug, Default)]
struct Replay {
    state: DurableState,
    replicas: BTreeMap<ChunkId, ReplicaId>,
    layer: Layer,
    /// Places of large content.
    claims: Claims,
    in_records: bool,
    /// Chunks with records whose content is damaged.
    damaged: BTreeSet<ChunkId>,
}

impl Replay {
    /// Notes, once, which replicas the checkpoint brought.
    fn end_checkpoint(&mut self) {
        if !self.in_records {
            self.in_records = true;
            let known = self.state.iter().map(|(chunk, r)| (*chunk, r.replica));
            self.replicas = known.collect();
        }
    }

    fn take(&mut self, item: Replayed) -> Result<(), OpenError> {
        match item {
            Replayed::Replica(bytes) => self.state.load(&bytes).map_err(|_| {
                let why = "a replica's state makes no sense";
                OpenError::Damaged { what: "journal", at: 0, why }
            }),
            Replayed::Record(record) => {
                self.end_checkpoint();
                note_record(&mut self.layer, &mut self.replicas, &record, &[]);
                let replaces = matches!(record, Record::Adopt { .. } | Record::Erase { .. });
                if replaces && self.layer.is_cleared(record.chunk()) {
                    void_claims(&mut self.claims, record.chunk());
                }
                self.state.apply(&record);
                Ok(())
            }
            Replayed::Placed(record, slots) => {
                self.end_checkpoint();
                let range = record.content().map(|content| content.range);
                let parts = range.into_iter().flat_map(slots_of);
                for ((index, part), slot) in parts.zip(&slots) {
                    let part_of = (record.chunk(), index);
                    add_claim(&mut self.claims, *slot, part_of, Bits::of(part));
                }
                note_record(&mut self.layer, &mut self.replicas, &record, &slots);
                self.state.apply(&record);
                Ok(())
            }
            Replayed::Damaged(record) => {
                self.end_checkpoint();
                self.damaged.insert(record.chunk());
                self.state.apply(&record);
                Ok(())
            }
        }
    }
}

/// Reserves slots for what replay brought back, and the file space for them.
fn regain(shared: &Shared) -> Result<(), OpenError> {
    let mut state = shared.lock();
    let reserved = state.reservations();
    state.map.set_reserved(reserved);
    if state.map.needed(0) > state.map.grown() {
        shared.grow(&mut state.map, 0)?;
    }
    Ok(())
}

fn slots(bytes: u64) -> Result<u32, OpenError> {
    let bad = OpenError::BadSize { what: "capacity", bytes };
    u32::try_from(bytes / SLOT_BYTES).ok().filter(|n| *n > 0).ok_or(bad)
}

/// Slots that both files have space for.
fn grown(data: &dyn DiskFile, map: &dyn DiskFile) -> Result<u32, DiskError> {
    let slots = (data.size()? / SLOT_BYTES).min(map.size()? / (2 * as_u64(PAGE)));
    Ok(u32::try_from(slots).unwrap_or(u32::MAX))
}

/// Makes an empty store.
fn make(
    disk: &dyn Disk,
    options: &StoreOptions,
    owner: Owner,
    dice: &mut dyn Dice,
    names: &[String],
) -> Result<(), OpenError> {
    let journal_bytes = options.journal_bytes;
    if !(JOURNAL_BYTES_MIN..=JOURNAL_BYTES_MAX).contains(&journal_bytes)
        || !journal_bytes.is_multiple_of(64 << 10)
    {
        return Err(OpenError::BadSize { what: "journal", bytes: journal_bytes });
    }
    let has = |name: &&str| names.iter().any(|n| n == name);
    if has(&DATA) && disk.open(DATA, OpenHow::EXISTING)?.size()? > 0 {
        let why = "it is missing, but there is data";
        return Err(OpenError::Damaged { what: "superblock", at: 0, why });
    }
    // Left over from an interrupted making.
    for name in [JOURNAL, MAP, DATA, SUPER_NEW].into_iter().filter(has) {
        disk.remove(name)?;
    }
    let journal = disk.open(JOURNAL, OpenHow::CREATE.direct())?;
    journal.preallocate(journal_bytes)?;
    write_zeros(&*journal, 0, journal_bytes)?;
    journal.sync_data()?;
    disk.open(MAP, OpenHow::CREATE.direct())?.sync_data()?;
    disk.open(DATA, OpenHow::CREATE.direct())?.sync_data()?;
    let superblock = Superblock {
        sequence: 0,
        store: StoreId(dice.next_u128()),
        zone: owner.zone,
        node: owner.node,
        start: StartNumber(0),
        journal_bytes,
        tail: 0,
        tail_number: 1,
        tail_chain: 0,
        checkpoint: 0,
        slots_used: 0,
        map_digest: 0,
        capacity_slots: slots(options.capacity_bytes)?,
        doubt: Doubt::default(),
    };
    let file = disk.open(SUPER_NEW, OpenHow::CREATE.direct())?;
    for sequence in 0..2 {
        write_superblock(&*file, &Superblock { sequence, ..superblock })?;
    }
    disk.rename(SUPER_NEW, SUPER)?;
    disk.sync_dir()?;
    Ok(())
}

/// The newer intact copy.
fn read_superblock(file: &dyn DiskFile) -> Result<Superblock, OpenError> {
    let mut found: Option<Superblock> = None;
    for copy in 0..2u64 {
        let mut page = AlignedBuf::zeroed(PAGE);
        file.read_at(&mut page, copy * as_u64(PAGE))?;
        match Superblock::decode(&page) {
            Ok(sb) => {
                if found.is_none_or(|f| f.sequence < sb.sequence) {
                    found = Some(sb);
                }
            }
            Err(Unreadable::Newer(version)) => {
                return Err(OpenError::NewerVersion { version, supported: VERSION });
            }
            Err(Unreadable::Damaged) => {}
        }
    }
    let why = "neither copy is intact";
    found.ok_or(OpenError::Damaged { what: "superblock", at: 0, why })
}

fn check_owner(sb: &Superblock, owner: Owner) -> Result<(), OpenError> {
    if sb.zone == owner.zone && sb.node == owner.node {
        return Ok(());
    }
    Err(OpenError::Foreign {
        found_zone: sb.zone,
        found_node: sb.node,
        zone: owner.zone,
        node: owner.node,
    })
}

fn read_journal(file: &dyn DiskFile, bytes: u64) -> Result<AlignedBuf, OpenError> {
    if file.size()? < bytes {
        let why = "the file is cut off";
        return Err(OpenError::Damaged { what: "journal", at: file.size()?, why });
    }
    let mut content = AlignedBuf::zeroed(as_usize(bytes));
    file.read_at(&mut content, 0)?;
    Ok(content)
}

/// Takes the next start number, in both copies: losing one of them must not bring an old number
/// back.
fn raise_start(
    file: &dyn DiskFile,
    superblock: &mut Superblock,
    seen: StartNumber,
) -> Result<(), DiskError> {
    superblock.start = superblock.start.max(seen).next();
    for _ in 0..2 {
        superblock.sequence += 1;
        write_superblock(file, superblock)?;
    }
    Ok(())
}

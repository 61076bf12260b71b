//! Which clients a node lets in: by the token of their attachment (design.md 4.8).
//!
//! The zone's key comes with the stream of the control plane. It is kept in the node's folder,
//! together with the attachments that this node has admitted: I/O of an attached volume depends on
//! no control plane, so a node that starts without one admits again whom it had admitted, however
//! old the token is by now. A damaged file is as good as none: then a client whose token has
//! expired must ask for another.

use ashlar_proto::token::{Grant, KEY_BYTES, Rights, Verifies};
use ashlar_types::message::data::TokenRefusal;
use ashlar_types::{Generation, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Name of the file within the node's folder.
const NAME: &str = "admitted.toml";
/// Version of the file; another one is as good as none.
const VERSION: u32 = 1;
/// Attachments that are remembered; as many volumes as a zone has.
const ADMITTED_MAX: usize = 10_000;

/// See the module.
#[derive(Debug)]
pub(crate) struct Admission {
    folder: PathBuf,
    known: Mutex<Known>,
    /// One save at a time, so that a later state is not overwritten by an earlier one.
    saving: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug, Default)]
struct Known {
    key: Option<Verifies>,
    /// Newest attachment of each volume.
    admitted: BTreeMap<VolumeId, Generation>,
    /// Changes so far, and how many of them are in the file, or were not to be saved.
    changes: u64,
    saved: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    version: u32,
    /// Public key of the zone, in hexadecimal.
    key: Option<String>,
    admitted: BTreeMap<String, u64>,
}

impl Admission {
    /// As it was saved last.
    pub(crate) fn load(folder: &Path) -> Self {
        let known = read(&folder.join(NAME)).unwrap_or_else(|problem| {
            tracing::warn!(%problem, "the admitted attachments are forgotten");
            Known::default()
        });
        let saving = tokio::sync::Mutex::default();
        Self { folder: folder.to_owned(), known: Mutex::new(known), saving }
    }

    /// For tests of what clients have no part in.
    #[cfg(test)]
    pub(crate) fn nobody() -> Self {
        Self::load(Path::new("no folder"))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it is held; what it guards is whole at every moment.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The control plane tells the zone's key.
    pub(crate) async fn learn(&self, public: &[u8; KEY_BYTES]) {
        let Some(key) = Verifies::from_public(public) else {
            tracing::error!("the zone's key is malformed; clients are admitted by the former one");
            return;
        };
        let changed = {
            let mut known = self.known();
            let changed = known.key.replace(key) != Some(key);
            known.changes += u64::from(changed);
            changed
        };
        if changed {
            self.save().await;
        }
    }

    /// Whether a client may connect under an attachment, and what it may do. `now`: seconds since
    /// 1970.
    ///
    /// # Errors
    /// What is wrong with its token.
    pub(crate) async fn admit(
        &self,
        (volume, generation): (VolumeId, Generation),
        token: &[u8],
        now: u64,
    ) -> Result<Rights, TokenRefusal> {
        let (rights, unsaved) = {
            let mut known = self.known();
            (known.judge((volume, generation), token, now)?, known.changes > known.saved)
        };
        if unsaved {
            // Perhaps by another connection of the attachment, whose save is still under way.
            self.save().await;
        }
        Ok(rights)
    }

    /// This node holds nothing of a volume any more. The file follows with the next admission.
    pub(crate) fn forget(&self, volume: VolumeId) {
        let mut known = self.known();
        let forgotten = known.admitted.remove(&volume).is_some();
        known.changes += u64::from(forgotten);
    }

    /// On return every change made before is saved, as far as the disk takes it.
    async fn save(&self) {
        let _turn = self.saving.lock().await;
        let (known, folder) = (self.known().clone(), self.folder.clone());
        let changes = known.changes;
        if changes == known.saved {
            return;
        }
        // Once for each attachment: a thread of its own for the sync costs nothing.
        let saved = tokio::task::spawn_blocking(move || write(&folder, &known)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "the admitted attachments could not be saved");
        }
        self.known().saved = changes;
    }
}

impl Known {
    /// What the client may do.
    fn judge(
        &mut self,
        attachment: (VolumeId, Generation),
        token: &[u8],
        now: u64,
    ) -> Result<Rights, TokenRefusal> {
        let key = self.key.ok_or(TokenRefusal::NoKey)?;
        let Grant { volume, generation, rights, expires } = key.read(token)?;
        if (volume, generation) != attachment {
            return Err(TokenRefusal::OtherAttachment);
        }
        let newest = self.admitted.get(&volume).copied().unwrap_or_default();
        if generation < newest {
            return Err(TokenRefusal::Superseded);
        }
        if generation == newest {
            return Ok(rights);
        }
        if expires <= now {
            return Err(TokenRefusal::Expired);
        }
        // Only if there are as many volumes here as a zone may have: others were forgotten.
        if self.admitted.len() >= ADMITTED_MAX && !self.admitted.contains_key(&volume) {
            // Admitted without being remembered: its client needs a fresh token next time.
            return Ok(rights);
        }
        self.admitted.insert(volume, generation);
        self.changes += 1;
        Ok(rights)
    }
}

fn read(path: &Path) -> Result<Known, String> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Known::default()),
        Err(error) => return Err(error.to_string()),
    };
    let kept: Kept = toml::from_str(&text).map_err(|error| error.to_string())?;
    if kept.version != VERSION {
        return Err(format!("the file has version {}, not {VERSION}", kept.version));
    }
    let key = match kept.key {
        Some(text) => Some(parse_key(&text).ok_or("the key is malformed")?),
        None => None,
    };
    let parsed = |(volume, generation): (String, u64)| {
        volume.parse().map(|volume: VolumeId| (volume, Generation(generation)))
    };
    let admitted = kept.admitted.into_iter().map(parsed).collect::<Result<_, _>>();
    let admitted = admitted.map_err(|error| error.to_string())?;
    Ok(Known { key, admitted, ..Known::default() })
}

fn parse_key(text: &str) -> Option<Verifies> {
    let number = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
    let bytes: Vec<u8> = (0..KEY_BYTES).map_while(number).collect();
    (text.len() == 2 * KEY_BYTES).then_some(())?;
    Verifies::from_public(&bytes.try_into().ok()?)
}

/// A crash leaves the former file or this one.
fn write(folder: &Path, known: &Known) -> io::Result<()> {
    let hex = |key: Verifies| key.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let admitted = known.admitted.iter().map(|(volume, at)| (volume.to_string(), at.0)).collect();
    let kept = Kept { version: VERSION, key: known.key.map(hex), admitted };
    let draft = folder.join("admitted.toml.new");
    let mut file = File::create(&draft)?;
    file.write_all(toml::to_string(&kept).map_err(io::Error::other)?.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, folder.join(NAME))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ashlar_proto::token::Signs;

    fn volume(uuid: u128) -> VolumeId {
        VolumeId { zone: "a".parse().unwrap(), uuid }
    }

    fn token(signs: &Signs, generation: u64) -> Vec<u8> {
        let (rights, generation) = (Rights::ReadWrite, Generation(generation));
        signs.sign(&Grant { volume: volume(1), generation, rights, expires: 100 })
    }

    #[tokio::test]
    async fn a_token_admits_its_own_attachment_until_it_expires_and_from_then_on_whom_it_admitted()
    {
        let folder = tempfile::tempdir().unwrap();
        let signs = Signs::from_secret(&[7; KEY_BYTES]);
        let admission = Admission::load(folder.path());
        let attachment = (volume(1), Generation(3));
        let good = token(&signs, 3);
        assert_eq!(admission.admit(attachment, &good, 50).await, Err(TokenRefusal::NoKey));
        admission.learn(&signs.public()).await;
        assert_eq!(admission.admit(attachment, &good, 100).await, Err(TokenRefusal::Expired));
        for other in [(volume(2), Generation(3)), (volume(1), Generation(4))] {
            let refused = admission.admit(other, &good, 50).await;
            assert_eq!(refused, Err(TokenRefusal::OtherAttachment));
        }
        assert_eq!(admission.admit(attachment, &good, 99).await, Ok(Rights::ReadWrite));
        assert_eq!(admission.admit(attachment, &good, 500).await, Ok(Rights::ReadWrite));
        // Another process of the node, without a control plane.
        let admission = Admission::load(folder.path());
        assert_eq!(admission.admit(attachment, &good, 500).await, Ok(Rights::ReadWrite));
        let newer = (volume(1), Generation(4));
        let refused = admission.admit(newer, &token(&signs, 4), 500).await;
        assert_eq!(refused, Err(TokenRefusal::Expired), "it was not admitted in time");
        assert!(admission.admit(newer, &token(&signs, 4), 99).await.is_ok());
        let refused = admission.admit(attachment, &good, 99).await;
        assert_eq!(refused, Err(TokenRefusal::Superseded));
    }

    #[tokio::test]
    async fn volumes_that_left_make_room_for_others() {
        let folder = tempfile::tempdir().unwrap();
        let signs = Signs::from_secret(&[7; KEY_BYTES]);
        let admission = Admission::load(folder.path());
        admission.learn(&signs.public()).await;
        let others = (10..10 + ADMITTED_MAX as u128).map(|uuid| (volume(uuid), Generation(1)));
        admission.known().admitted.extend(others);
        let (attachment, good) = ((volume(1), Generation(3)), token(&signs, 3));
        admission.admit(attachment, &good, 50).await.unwrap();
        let late = admission.admit(attachment, &good, 500).await;
        assert_eq!(late, Err(TokenRefusal::Expired), "there is no room to remember it");
        admission.forget(volume(10));
        admission.admit(attachment, &good, 50).await.unwrap();
        assert!(admission.admit(attachment, &good, 500).await.is_ok());
    }

    #[tokio::test]
    async fn no_connection_is_let_in_before_its_attachment_is_saved() {
        let folder = tempfile::tempdir().unwrap();
        let signs = Signs::from_secret(&[7; KEY_BYTES]);
        let admission = Admission::load(folder.path());
        admission.learn(&signs.public()).await;
        let (attachment, good) = ((volume(1), Generation(3)), token(&signs, 3));
        // Somebody's save is under way.
        let turn = admission.saving.lock().await;
        let mut first = std::pin::pin!(admission.admit(attachment, &good, 50));
        let mut second = std::pin::pin!(admission.admit(attachment, &good, 50));
        let mut look = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(first.as_mut().poll(&mut look).is_pending());
        assert!(second.as_mut().poll(&mut look).is_pending(), "let in by the first one's save");
        drop(turn);
        assert_eq!(first.await, Ok(Rights::ReadWrite));
        assert_eq!(second.await, Ok(Rights::ReadWrite));
        let again = Admission::load(folder.path());
        assert_eq!(again.admit(attachment, &good, 500).await, Ok(Rights::ReadWrite));
    }

    #[tokio::test]
    async fn a_damaged_file_is_none_and_another_zone_s_token_admits_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let signs = Signs::from_secret(&[7; KEY_BYTES]);
        Admission::load(folder.path()).learn(&signs.public()).await;
        let other = Signs::from_secret(&[8; KEY_BYTES]);
        let attachment = (volume(1), Generation(3));
        let admission = Admission::load(folder.path());
        let refused = admission.admit(attachment, &token(&other, 3), 1).await;
        assert_eq!(refused, Err(TokenRefusal::Signature));
        for damage in ["{", "version = 2\n[admitted]", "version = 1\nkey = \"00\"\n[admitted]"] {
            fs::write(folder.path().join(NAME), damage).unwrap();
            let admission = Admission::load(folder.path());
            let refused = admission.admit(attachment, &token(&signs, 3), 1).await;
            assert_eq!(refused, Err(TokenRefusal::NoKey), "{damage}");
        }
    }
}

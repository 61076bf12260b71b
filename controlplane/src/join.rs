//! The first start of a member that was added: it asks the zone whether it may start empty.
//!
//! A number whose store was lost must not vote again: it may have voted. So the store draws a number
//! of its own, kept in the folder, and the zone lets a member start with one store only. Order that
//! makes every crash harmless: the number is durable before it is told, told before the log is made,
//! and marked as used once the log is durable.
//!
//! The other side of it: a member whose store turns out to be damaged or empty tells the zone before
//! it ends, so that operators see it.

use crate::config::Checked;
use crate::member::MemberError;
use crate::server::{RunError, endpoint};
use ashlar_env::dice::{Dice, SeededDice};
use ashlar_log::LogError;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_proto::v1::cluster_service_client::ClusterServiceClient;
use ashlar_types::backoff::{Backoff, BackoffPolicy};
use ashlar_zone_raft::{Start, StorageError};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;
use tonic::transport::Channel;

/// Name of the file in the member's folder.
const NAME: &str = "join";
/// How long one member may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Waits between rounds over the members.
const ROUNDS: BackoffPolicy =
    BackoffPolicy { first: Duration::from_millis(100), max: Duration::from_secs(2) };

/// What the folder says of the first start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// It has not happened, or not to its end.
    Pending(u128),
    /// An empty log is a loss from then on.
    Done,
}

fn load(folder: &Path) -> io::Result<Option<Found>> {
    let text = match fs::read_to_string(folder.join(NAME)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let pending = text.trim().strip_prefix("pending ");
    match pending.map(|digits| u128::from_str_radix(digits, 16)) {
        Some(Ok(store)) => Ok(Some(Found::Pending(store))),
        // Damaged or done: either way an empty log is none that may vote.
        Some(Err(_)) | None => Ok(Some(Found::Done)),
    }
}

fn save(folder: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let draft = folder.join("join.new");
    let mut file = File::create(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, folder.join(NAME))?;
    File::open(folder)?.sync_all()
}

/// How a member starts that has `join` in its configuration: as one that joins, once the zone has
/// let it, and from then on as any other.
///
/// # Errors
/// The zone refuses the member, or the folder cannot be used.
pub(crate) async fn first_start(checked: &Checked) -> Result<Start, RunError> {
    let failed = |cause| RunError::Folder { folder: checked.data_dir.display().to_string(), cause };
    let store = match load(&checked.data_dir).map_err(failed)? {
        Some(Found::Done) => return Ok(Start::Again),
        Some(Found::Pending(store)) => store,
        None => {
            let store = SeededDice::system().next_u128().max(1);
            save(&checked.data_dir, &format!("pending {store:032x}\n")).map_err(failed)?;
            store
        }
    };
    let request = v1::JoinMemberRequest {
        zone: checked.member.zone.to_string(),
        member: checked.member.raft.id,
        store: format!("{store:032x}"),
    };
    let mut rounds = Backoff::new(ROUNDS);
    let mut last = String::new();
    loop {
        for address in &checked.join {
            match ask(address, &request).await {
                Ok(answer) => {
                    let port = |text: &str| text.parse().map(|at: SocketAddr| at.port()).ok();
                    if port(&answer.address) != Some(checked.listen.port()) {
                        tracing::warn!(
                            zone_dials = %answer.address, listen = %checked.listen,
                            "the zone looks for this member at another port than it listens on"
                        );
                    }
                    return Ok(Start::Join);
                }
                Err(Refused::For(error)) => return Err(RunError::Refused(error)),
                Err(Refused::Later(why)) if why != last => {
                    tracing::info!(%address, %why, "the zone is asked to let this member start");
                    last = why;
                }
                Err(Refused::Later(_)) => {}
            }
        }
        tokio::time::sleep(rounds.next_wait(SeededDice::system().next_u64())).await;
    }
}

/// The member has started: its log is durable.
///
/// # Errors
/// The folder cannot be used.
pub(crate) fn started(checked: &Checked) -> Result<(), RunError> {
    let failed = |cause| RunError::Folder { folder: checked.data_dir.display().to_string(), cause };
    match load(&checked.data_dir).map_err(failed)? {
        Some(Found::Pending(_)) => save(&checked.data_dir, "done\n").map_err(failed),
        Some(Found::Done) | None => Ok(()),
    }
}

enum Refused {
    /// For good.
    For(ApiError),
    /// Nobody there, or no leader: ask again.
    Later(String),
}

async fn ask(
    address: &str,
    request: &v1::JoinMemberRequest,
) -> Result<v1::JoinMemberResponse, Refused> {
    let mut client = client(address).map_err(Refused::Later)?;
    match timeout(ANSWER_WITHIN, client.join_member(request.clone())).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => match ApiError::from_status(&status) {
            Some(error) if !error.reason.is_transient() => Err(Refused::For(error)),
            Some(error) => Err(Refused::Later(error.message)),
            None => Err(Refused::Later(status.message().to_owned())),
        },
        Err(_elapsed) => Err(Refused::Later("no answer".to_owned())),
    }
}

fn client(address: &str) -> Result<ClusterServiceClient<Channel>, String> {
    let endpoint = endpoint(address).map_err(|error| error.to_string())?;
    Ok(ClusterServiceClient::new(endpoint.connect_lazy()))
}

/// Tells the zone that this member cannot take part, if that is what kept it from starting. One
/// round over the members: the next start tells it again.
pub(crate) async fn report_lost(checked: &Checked, error: &RunError) {
    let RunError::Member(error) = error else { return };
    let Some(cause) = cause_of_loss(error) else { return };
    let me = checked.member.raft.id;
    let peers = checked.member.addresses.iter().filter(|(id, _)| **id != me).map(|(_, at)| at);
    let request =
        v1::ReportLostMemberRequest { zone: checked.member.zone.to_string(), member: me, cause };
    for address in peers.chain(&checked.join) {
        let Ok(mut client) = client(address) else { continue };
        match timeout(ANSWER_WITHIN, client.report_lost_member(request.clone())).await {
            Ok(Ok(_)) => return,
            Ok(Err(status)) => {
                let removed = ApiError::from_status(&status)
                    .is_some_and(|error| error.reason == Reason::MemberRemoved);
                if removed {
                    return;
                }
                tracing::debug!(%address, %status, "the zone is not told of the loss");
            }
            Err(_elapsed) => tracing::debug!(%address, "the zone is not told of the loss"),
        }
    }
}

/// What of a member's memory is lost for good; `None`: it may start another time.
fn cause_of_loss(error: &MemberError) -> Option<String> {
    let lost = match error {
        MemberError::StateLost { .. } => true,
        MemberError::Storage(error) => match error {
            StorageError::Log(LogError::Damaged { .. })
            | StorageError::State("damaged" | "empty" | "too short")
            | StorageError::Entry { .. }
            | StorageError::Empty
            | StorageError::AppliedAhead { .. }
            | StorageError::AppliedBehind { .. } => true,
            StorageError::Log(_)
            | StorageError::Disk(_)
            | StorageError::Snapshot { .. }
            | StorageError::State(_) => false,
        },
        MemberError::Raft(_)
        | MemberError::Meta(_)
        | MemberError::State(_)
        | MemberError::Command { .. }
        | MemberError::Removed { .. } => false,
    };
    lost.then(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_start_is_remembered_and_damage_to_that_is_no_first_start() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(load(folder.path()).unwrap(), None);
        save(folder.path(), "pending 0000000000000000000000000000002a\n").unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(Found::Pending(42)));
        save(folder.path(), "pending ???").unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(Found::Done));
        save(folder.path(), "done\n").unwrap();
        assert_eq!(load(folder.path()).unwrap(), Some(Found::Done));
    }

    #[test]
    fn a_loss_is_what_no_other_start_can_mend() {
        let empty = MemberError::Storage(StorageError::Empty);
        assert!(cause_of_loss(&empty).unwrap().contains("must not vote"));
        let damaged = LogError::Damaged { segment: 1, offset: 2, why: "x" };
        assert!(cause_of_loss(&MemberError::Storage(StorageError::Log(damaged))).is_some());
        assert_eq!(cause_of_loss(&MemberError::Storage(StorageError::Log(LogError::Failed))), None);
    }
}

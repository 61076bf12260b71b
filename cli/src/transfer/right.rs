//! The right to a volume, through all runs of one transfer.
//!
//! Every attachment and every detachment raises the generation by one. A run notes the generation that
//! it got; the next run may go on only if nobody else was attached in between: what it finds is its own
//! attachment (left by a run that was killed), or at most its own detachment on top of what it noted.

use ashlar_client::{Volume, VolumeOptions};
use ashlar_proto::v1;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;

use super::DETACH_WITHIN;
use super::state::State;
use crate::connect::{self, Zone};
use crate::failure::{Failure, Kind};

/// Generations that one run may add without having noted the last of them: it detached, and its
/// successor was killed between its attachment and the note of it.
const UNNOTED_MAX: u64 = 2;

/// How the next run may take the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nobody has it.
    Attach,
    /// An earlier run of this transfer still has it.
    TakeBack,
    /// Somebody else has it, or had it since.
    Closed,
}

/// What the client is called in the volume's status: tells whose attachment it is.
fn client_name(verb: &str, token: &str) -> String {
    format!("ashlar volume {verb}, {token}")
}

fn way(noted: Option<u64>, volume: &v1::Volume, own_name: &str) -> Way {
    let since = noted.map(|noted| volume.generation.saturating_sub(noted));
    match (&volume.attachment, since) {
        (Some(attachment), since) if attachment.client_name == own_name => match since {
            Some(since) if since > UNNOTED_MAX => Way::Closed,
            _ => Way::TakeBack,
        },
        (Some(_), _) => Way::Closed,
        // The first run: whatever was before is of no concern.
        (None, None) => Way::Attach,
        (None, Some(since)) if since <= 1 => Way::Attach,
        (None, Some(_)) => Way::Closed,
    }
}

/// The volume as the control plane has it.
pub(super) async fn find(zone: &Zone, what: &str, volume: &str) -> Result<v1::Volume, Failure> {
    let within = zone.within();
    let answer = zone.call(what, within, |channel| {
        let request = v1::GetVolumeRequest { volume: volume.to_owned() };
        async move { VolumeServiceClient::new(channel).get_volume(request).await }
    });
    Ok(answer.await?.volume.unwrap_or_default())
}

/// Attaches the volume for a run, and notes it where notes are kept.
pub(super) async fn take(
    zone: &Zone,
    (what, verb): (&str, &str),
    found: &v1::Volume,
    token: &str,
    state: Option<&mut State>,
) -> Result<Volume, Failure> {
    let own_name = client_name(verb, token);
    let noted = state.as_ref().and_then(|state| state.generation);
    let closed = |why: String| {
        Failure::new(Kind::Conflict, what.to_owned()).because(why).try_next(
            "detach it where it is attached; if a transfer was begun, delete its file and notes and \
             begin anew, as the content may have changed",
        )
    };
    let way = way(noted, found, &own_name);
    if way == Way::Closed {
        return Err(closed(match &found.attachment {
            Some(attachment) => format!("it is attached to {}", attachment.client_name),
            None => "somebody else was attached since the last run".to_owned(),
        }));
    }
    let options = VolumeOptions {
        client_name: own_name,
        force: way == Way::TakeBack,
        read_only: verb == "export",
        ..VolumeOptions::default()
    };
    let volume = Volume::attach(zone.endpoints(), &found.id, options)
        .await
        .map_err(|error| connect::from_control(what, &error))?;
    let generation = volume.generation().0;
    if generation != found.generation + 1 {
        // Somebody came between the look and the attachment. Best effort: the content is not ours.
        drop(volume.detach(DETACH_WITHIN).await);
        return Err(closed("somebody else was attached just now".to_owned()));
    }
    if let Some(state) = state {
        state
            .note_attached(generation)
            .map_err(|error| Failure::new(Kind::Error, what.to_owned()).because(error))?;
    }
    Ok(volume)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(generation: u64, client: Option<&str>) -> v1::Volume {
        let attachment = client.map(|name| v1::Attachment {
            client_name: name.to_owned(),
            generation,
            since_unix_millis: 0,
            ..Default::default()
        });
        v1::Volume { generation, attachment, ..Default::default() }
    }

    #[test]
    fn a_transfer_goes_on_only_if_nobody_else_was_attached() {
        let of = |noted, generation, client| way(noted, &volume(generation, client), "me");
        assert_eq!(of(None, 0, None), Way::Attach);
        assert_eq!(of(None, 9, None), Way::Attach);
        assert_eq!(of(None, 9, Some("you")), Way::Closed);
        assert_eq!(of(Some(3), 3, Some("me")), Way::TakeBack);
        assert_eq!(of(Some(3), 4, None), Way::Attach);
        assert_eq!(of(Some(3), 4, Some("me")), Way::TakeBack);
        assert_eq!(of(Some(3), 5, Some("me")), Way::TakeBack);
        assert_eq!(of(Some(3), 4, Some("you")), Way::Closed);
        assert_eq!(of(Some(3), 6, None), Way::Closed);
        assert_eq!(of(Some(3), 7, Some("me")), Way::Closed);
    }
}

//! What a volume's task hears beside its map: that the volume has grown, where the members of the
//! control plane are. Asked for away from the task, so that I/O never waits for it.

use super::MAP_WITHIN;
use crate::control::ControlPlane;
use ashlar_env::task::{Task, spawn_named};
use ashlar_types::VolumeId;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How often the control plane is asked whether the volume has grown. Who grows a volume looks for the new
/// size a moment later; half of it would double what idle volumes cost a control plane.
const SIZE_EVERY: Duration = Duration::from_secs(5);
/// How often, in such turns, it is asked where its members are: more often than an operator can replace
/// all of them, one after another.
const MEMBERS_EVERY_TURNS: u32 = 2;

/// What is heard beside the map.
#[derive(Debug)]
pub(super) enum News {
    /// Where the members of the control plane are.
    Members(Vec<String>),
    /// The volume is larger than it is here: the map says where.
    Larger,
}

/// Asks now and then whether the volume has grown and where the members of the control plane are, away
/// from the volume's own task.
pub(super) fn ask_around(
    mut control: ControlPlane,
    volume: VolumeId,
    size: watch::Receiver<u64>,
    news: mpsc::Sender<News>,
) -> Task<()> {
    let ask = async move {
        for turn in 1_u32.. {
            tokio::time::sleep(SIZE_EVERY).await;
            let heard = match control.size(volume, MAP_WITHIN).await {
                Ok(now) if now > *size.borrow() => news.send(News::Larger).await,
                Ok(_) => Ok(()),
                Err(error) => {
                    tracing::debug!(%error, "the size of the volume is not known");
                    Ok(())
                }
            };
            if heard.is_err() {
                return;
            }
            if !turn.is_multiple_of(MEMBERS_EVERY_TURNS) {
                continue;
            }
            match control.ask_members(volume.zone, MAP_WITHIN).await {
                Ok(members) => {
                    let is_news = control.learn(&members);
                    if is_news && news.send(News::Members(members)).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::debug!(%error, "where the members are is not known"),
            }
        }
    };
    spawn_named("client-news", ask).abort_on_drop()
}

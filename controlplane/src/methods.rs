//! The calls that the schema has: how each is served, and how each is sent to another member.
//!
//! One table, so that no call is served and not forwarded. Nothing is decided here: every call goes
//! to the [`Gateway`].

use crate::member::{Reply, Request as Ask};
use crate::region::Gateway;
use ashlar_proto::reason::{ApiError, Reason};
use ashlar_proto::v1;
use ashlar_proto::v1::cluster_service_client::ClusterServiceClient;
use ashlar_proto::v1::volume_service_client::VolumeServiceClient;
use std::time::Duration;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// On whose behalf a member asks another one. A call makes at most one hop of each kind, so that
/// no mistake in a configuration sends it in circles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hop {
    /// A member of another zone asks: this zone answers, or nobody.
    Zone,
    /// A follower of the same zone asks: this member answers, or nobody.
    Leader,
}

impl Hop {
    const ALL: [Self; 2] = [Self::Zone, Self::Leader];

    fn header(self) -> &'static str {
        match self {
            Self::Zone => "ashlar-zone-hop",
            Self::Leader => "ashlar-forwarded",
        }
    }

    /// The hop that a call has made already: the last one, if it made both.
    pub(crate) fn made(metadata: &MetadataMap) -> Option<Self> {
        Self::ALL.into_iter().rfind(|hop| metadata.contains_key(hop.header()))
    }
}

fn forwarding<T>(message: T, left: Duration, hop: Hop) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(left);
    request.metadata_mut().insert(hop.header(), MetadataValue::from_static("1"));
    request
}

/// A call that the schema has: how it is served, and how it is forwarded.
macro_rules! calls {
    ($($module:ident $service:ident, $client:ident: $($method:ident $call:ident $in:ident $out:ident),* ;)*) => {
        /// Sends a call to another member, which has this long to answer.
        pub(crate) async fn send(
            channel: Channel,
            ask: Ask,
            left: Duration,
            hop: Hop,
        ) -> Result<Reply, Status> {
            match ask {
                $($(Ask::$call(message) => {
                    let mut client = $client::new(channel)
                        .max_decoding_message_size(ashlar_proto::GRPC_MESSAGE_BYTES_MAX);
                    let reply = client.$method(forwarding(message, left, hop)).await?;
                    Ok(Reply::$call(reply.into_inner()))
                })*)*
            }
        }

        $(#[tonic::async_trait]
        impl v1::$module::$service for Gateway {
            $(async fn $method(
                &self,
                request: Request<v1::$in>,
            ) -> Result<Response<v1::$out>, Status> {
                let (metadata, _, message) = request.into_parts();
                match self.answer(&metadata, Ask::$call(message)).await? {
                    Reply::$call(reply) => Ok(Response::new(reply)),
                    other => Err(mixed_up(&other)),
                }
            })*
        })*
    };
}

calls! {
    volume_service_server VolumeService, VolumeServiceClient:
        create_volume CreateVolume CreateVolumeRequest CreateVolumeResponse,
        delete_volume DeleteVolume DeleteVolumeRequest DeleteVolumeResponse,
        grow_volume GrowVolume GrowVolumeRequest GrowVolumeResponse,
        list_volumes ListVolumes ListVolumesRequest ListVolumesResponse,
        get_volume GetVolume GetVolumeRequest GetVolumeResponse,
        attach_volume AttachVolume AttachVolumeRequest AttachVolumeResponse,
        detach_volume DetachVolume DetachVolumeRequest DetachVolumeResponse,
        get_volume_map GetVolumeMap GetVolumeMapRequest GetVolumeMapResponse,
        salvage_volume SalvageVolume SalvageVolumeRequest SalvageVolumeResponse,
        acknowledge_risk AcknowledgeRisk AcknowledgeRiskRequest AcknowledgeRiskResponse;
    cluster_service_server ClusterService, ClusterServiceClient:
        get_status GetStatus GetStatusRequest GetStatusResponse,
        list_nodes ListNodes ListNodesRequest ListNodesResponse,
        drain_node DrainNode DrainNodeRequest DrainNodeResponse,
        list_members ListMembers ListMembersRequest ListMembersResponse,
        add_member AddMember AddMemberRequest AddMemberResponse,
        remove_member RemoveMember RemoveMemberRequest RemoveMemberResponse,
        join_member JoinMember JoinMemberRequest JoinMemberResponse,
        report_lost_member ReportLostMember ReportLostMemberRequest ReportLostMemberResponse;
}

#[tonic::async_trait]
impl v1::region_service_server::RegionService for Gateway {
    async fn list_zones(
        &self,
        _request: Request<v1::ListZonesRequest>,
    ) -> Result<Response<v1::ListZonesResponse>, Status> {
        Ok(Response::new(self.zones()))
    }
}

/// The member answered another question: a mistake of ours, told as such.
pub(crate) fn mixed_up(reply: &Reply) -> Status {
    tracing::error!(?reply, "a call got the answer of another one");
    ApiError::new(Reason::StorageFailed, "the member gave the answer of another call").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_made_both_hops_makes_none_again() {
        let mut metadata = MetadataMap::new();
        assert_eq!(Hop::made(&metadata), None);
        metadata.insert("ashlar-zone-hop", MetadataValue::from_static("1"));
        assert_eq!(Hop::made(&metadata), Some(Hop::Zone));
        metadata.insert("ashlar-forwarded", MetadataValue::from_static("1"));
        assert_eq!(Hop::made(&metadata), Some(Hop::Leader));
    }
}

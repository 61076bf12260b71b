//! Every call of every service, as a zone that runs describes them by reflection: an empty request is
//! answered, or refused with a reason of the registry; what changes something is never carried out.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by a panic")]

use std::collections::BTreeMap;
use std::time::Duration;

use ashlar_proto::reason::ApiError;
use ashlar_tests::cluster::Cluster;
use prost::Message;
use prost::bytes::{Buf, BufMut};
use prost_types::{FileDescriptorProto, MethodDescriptorProto};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// Longest that a call with an empty request may take: it needs nobody else.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Messages as they are on the wire.
#[derive(Debug, Default, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).to_vec()))
    }
}

async fn reflect(channel: &Channel, question: MessageRequest) -> ServerReflectionResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut client = ServerReflectionClient::new(channel.clone());
    let answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    answers.into_inner().message().await.unwrap().unwrap()
}

/// Our services by name, and the fields of every message.
async fn described(
    channel: &Channel,
) -> (BTreeMap<String, Vec<MethodDescriptorProto>>, BTreeMap<String, Vec<String>>) {
    let listed = reflect(channel, MessageRequest::ListServices(String::new())).await;
    let Some(MessageResponse::ListServicesResponse(listed)) = listed.message_response else {
        panic!("no list of services: {listed:?}");
    };
    let (mut services, mut fields) = (BTreeMap::new(), BTreeMap::new());
    for service in listed.service.iter().filter(|service| service.name.starts_with("ashlar.")) {
        let symbol = MessageRequest::FileContainingSymbol(service.name.clone());
        let found = reflect(channel, symbol).await;
        let Some(MessageResponse::FileDescriptorResponse(files)) = found.message_response else {
            panic!("{} is listed and not described: {found:?}", service.name);
        };
        for file in &files.file_descriptor_proto {
            let file = FileDescriptorProto::decode(file.as_slice()).unwrap();
            for described in &file.service {
                let name = format!("{}.{}", file.package(), described.name());
                services.insert(name, described.method.clone());
            }
            for message in &file.message_type {
                let names = message.field.iter().map(|field| field.name().to_owned()).collect();
                let name = format!(".{}.{}", file.package(), message.name());
                fields.insert(name, names);
            }
        }
    }
    (services, fields)
}

/// What an empty request brings.
async fn call(channel: &Channel, path: &str, streams: bool) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path = path.parse().unwrap();
    let empty = tokio_stream::iter([Vec::new()]);
    let asked = async {
        if streams {
            let answers = client.streaming(Request::new(empty), path, Raw).await?;
            answers.into_inner().message().await.map(drop)
        } else {
            client.unary(Request::new(Vec::new()), path, Raw).await.map(drop)
        }
    };
    tokio::time::timeout(ANSWER_WITHIN, asked).await.unwrap_or_else(|_| panic!("no answer in time"))
}

#[test]
fn every_call_answers_an_empty_request_or_refuses_it_with_a_reason() {
    let mut cluster = Cluster::start(&["--no-mount", "--members", "1", "--nodes", "3"]);
    let zones = cluster.must(&["zone", "list", "-o", "json"]);
    let zones: serde_json::Value = serde_json::from_str(&zones).unwrap();
    let member = zones.pointer("/zones/0/members/0").unwrap().as_str().unwrap().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{member}")).unwrap();
        let channel = endpoint.connect().await.unwrap();
        let (services, fields) = described(&channel).await;
        for wanted in ["Volume", "Cluster", "Region", "Node", "Raft"] {
            assert!(services.contains_key(&format!("ashlar.v1.{wanted}Service")), "{wanted}");
        }
        let mut refused = 0;
        for (service, methods) in &services {
            for method in methods {
                let path = format!("/{service}/{}", method.name());
                let streams = method.client_streaming() || method.server_streaming();
                let changes = fields
                    .get(method.input_type())
                    .is_some_and(|fields| fields.iter().any(|field| field == "client_token"));
                match call(&channel, &path, streams).await {
                    Ok(()) => assert!(!changes, "{path} was carried out"),
                    Err(status) => {
                        let error = ApiError::from_status(&status);
                        let error = error.unwrap_or_else(|| panic!("{path}: untyped: {status:?}"));
                        assert!(!error.message.is_empty(), "{path}: {error:?}");
                        refused += 1;
                    }
                }
            }
        }
        assert!(refused >= 8, "only {refused} calls were refused");
    });
    cluster.must(&["volume", "show", "demo"]);
    cluster.stop();
}

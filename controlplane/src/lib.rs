//! A zone's control plane: Raft group, gRPC services and the task that drives its core.

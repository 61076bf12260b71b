//! Volumes for programs and hosts: library, attach daemon, NBD, FUSE, mount.

//! A segmented, checksummed, group-committed log over the Disk seam.

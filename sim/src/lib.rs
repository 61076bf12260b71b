//! A zone in one process under a virtual clock, from one seed.

//! The documents of an image: descriptors, manifests, indexes, image configs.
//!
//! OCI image spec v1.1 and docker's schema 2, which differ in media types only.

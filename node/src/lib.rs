//! Portcullis, a self-hosted access node.

//! The agent takes another configuration while it runs, and `sensor support` collects what others need to see. Needs
//! root.

mod reload;
mod scene;
mod support;

//! The parts of `floe demo`: an image to show, the full pull to compare with, and the chart of both.

pub mod chart;
pub mod full_pull;
pub mod image;
mod layer;
pub(crate) mod show;

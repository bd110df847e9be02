//! The parts of the `floe` command: everything but `main`, so that tests can reach it.

pub mod cli;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod engine;
pub mod exit;
pub mod home;
mod imageservice;
pub mod install;
pub mod layerstore;
pub mod origin;
pub mod progress;
pub mod run;
pub mod size;
pub mod snapshotter;
pub mod talk;
pub mod trust;

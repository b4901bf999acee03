//! What a program's file says about preloading a library into it.
//!
//! * [`image`]: the ELF file. [`script`]: from a `#!` script to the program that runs it.
//! * [`privilege`]: whether the kernel would make it a secure execution.
//!
//! Only the file is looked at, not what the program starts or loads later.

mod image;
mod privilege;
mod script;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub(crate) use image::Image;

/// A program as it would be started.
#[derive(Debug)]
pub(crate) struct Program {
    /// The scripts on the way to it, outermost first.
    pub(crate) scripts: Vec<PathBuf>,
    /// The ELF file.
    pub(crate) path: PathBuf,
    pub(crate) image: Image,
    privilege: privilege::Privilege,
}

/// Why a library cannot be preloaded into a program, or has no effect there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Obstacle {
    #[error("it is statically linked, and only the dynamic loader reads LD_PRELOAD")]
    Static,
    #[error("it is {theirs}, and the library is {ours}")]
    Machine { theirs: String, ours: String },
    #[error("it is linked with another libc than the library, which is therefore not loaded")]
    OtherLibc,
    #[error("{0}, and the loader ignores LD_PRELOAD when privileges change")]
    Privileged(String),
    #[error("it is a Go program, which makes system calls without libc")]
    Go,
}

impl Program {
    /// Looks at the file that execvp would run.
    pub(crate) fn open(command: &Path) -> Result<Self> {
        let (scripts, path) = script::follow(command)?;
        let image =
            Image::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let privilege = privilege::Privilege::of(&path)
            .with_context(|| format!("cannot look at {}", path.display()))?;
        Ok(Self {
            scripts,
            path,
            image,
            privilege,
        })
    }

    /// What stands in the way of preloading `library`; empty if nothing does.
    pub(crate) fn obstacles(&self, library: Option<&Image>) -> Vec<Obstacle> {
        let mut obstacles = Vec::new();
        if self.image.interpreter.is_none() {
            obstacles.push(Obstacle::Static);
        } else if let Some(library) = library {
            if self.image.machine() != library.machine() {
                obstacles.push(Obstacle::Machine {
                    theirs: self.image.machine(),
                    ours: library.machine(),
                });
            } else if self.image.is_musl() != library.is_musl() {
                obstacles.push(Obstacle::OtherLibc);
            }
        }
        if self.image.is_go {
            obstacles.push(Obstacle::Go);
        }
        obstacles.extend(self.privilege.gained().map(Obstacle::Privileged));
        obstacles
    }

    /// Set-id bits and capabilities that have no effect for the present user.
    pub(crate) fn harmless_privilege(&self) -> Option<String> {
        self.privilege.harmless()
    }
}

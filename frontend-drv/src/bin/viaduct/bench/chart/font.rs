//! Finds a sans-serif TrueType font for the PNG; plotters brings none.

use std::fs;
use std::path::{Path, PathBuf};

use once_cell::sync::OnceCell;
use plotters::style::{FontStyle, register_font};

/// Also what an SVG names: the viewer takes the first it has.
pub(super) const FAMILY: &str = "DejaVu Sans, Verdana, Arial, sans-serif";

/// Makes [`FAMILY`] known to plotters, once; false if this machine has no such font.
pub(super) fn register() -> bool {
    static FOUND: OnceCell<bool> = OnceCell::new();
    *FOUND.get_or_init(|| {
        let files = font_files();
        FACES.iter().any(|(normal, bold)| {
            let load = |name| find(&files, name).is_some_and(|path| load(path, FontStyle::Normal));
            if !load(normal) {
                return false;
            }
            // Without a bold face plotters uses the normal one.
            if let Some(path) = find(&files, bold) {
                self::load(path, FontStyle::Bold);
            }
            true
        })
    })
}

fn load(path: &Path, style: FontStyle) -> bool {
    // plotters keeps fonts for good, so the bytes are never given back.
    fs::read(path).is_ok_and(|bytes| register_font(FAMILY, style, bytes.leak()).is_ok())
}

fn find<'a>(files: &'a [PathBuf], name: &str) -> Option<&'a Path> {
    let same_name = |path: &&PathBuf| path.file_name().is_some_and(|file| file == name);
    files.iter().find(same_name).map(PathBuf::as_path)
}

/// All files in the usual places, a few levels deep.
fn font_files() -> Vec<PathBuf> {
    let mut directories: Vec<(PathBuf, u32)> = ["/usr/share/fonts", "/usr/local/share/fonts"]
        .map(|path| (PathBuf::from(path), 0))
        .to_vec();
    if let Some(home) = std::env::home_dir() {
        directories.push((home.join(".local/share/fonts"), 0));
        directories.push((home.join(".fonts"), 0));
    }
    let mut files = Vec::new();
    while let Some((directory, depth)) = directories.pop() {
        let Ok(entries) = fs::read_dir(directory) else {
            continue;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if !path.is_dir() {
                files.push(path);
            } else if depth < DEPTH_MAX {
                directories.push((path, depth + 1));
            }
        }
    }
    files
}

/// Normal and bold, best first. The picture's proportions are DejaVu's.
const FACES: [(&str, &str); 6] = [
    ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    ("Verdana.ttf", "Verdana_Bold.ttf"),
    ("LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf"),
    ("NotoSans-Regular.ttf", "NotoSans-Bold.ttf"),
    ("Arial.ttf", "Arial_Bold.ttf"),
    ("FreeSans.ttf", "FreeSansBold.ttf"),
];
const DEPTH_MAX: u32 = 4;

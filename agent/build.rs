//! Asks the linker for packed relocations where the program's C library has them.

#[path = "build/relocations.rs"]
mod relocations;

fn main() {
    relocations::pack();
}

//! Asks the linker for packed relocations where the program's C library has them.

#[path = "../agent/build/relocations.rs"]
mod relocations;

fn main() {
    relocations::pack();
}

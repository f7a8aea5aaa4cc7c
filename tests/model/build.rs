//! Compiles this package alone with the model's types in place of the real ones.

fn main() {
    println!("cargo::rustc-cfg=model");
}

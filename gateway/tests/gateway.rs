//! The real gateway binary against small fake workers whose answers are scripted.

// `cfg(test)` always holds here; it tells clippy that these helpers may unwrap, too.
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod containment;
#[cfg(test)]
mod discovery;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod front;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod life;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod page;
#[cfg(test)]
mod read;
#[cfg(test)]
mod submit;
#[cfg(test)]
mod upstream;

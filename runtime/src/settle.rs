//! When a followed file counts as changed: once two looks have seen the same new content. One look may catch a file
//! half written, or one file of a pair before the other.

/// What was last seen of it.
#[derive(Debug)]
pub struct Settle<T> {
    settled: T,
    changing: Option<T>,
}

impl<T: PartialEq> Settle<T> {
    /// Begins with content that counts already.
    pub fn new(settled: T) -> Self {
        Self { settled, changing: None }
    }

    /// Takes a look; gives the content when it is new and has stood for two looks.
    pub fn saw(&mut self, seen: T) -> Option<&T> {
        if seen == self.settled {
            self.changing = None;
            return None;
        }
        if self.changing.as_ref() != Some(&seen) {
            self.changing = Some(seen);
            return None;
        }
        self.changing = None;
        self.settled = seen;
        Some(&self.settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_content_counts_once_when_it_has_stood_for_two_looks() {
        let mut settle = Settle::new("old");
        let looks = ["old", "ha", "half", "half", "half", "old", "half", "old", "old"];
        let counted: Vec<bool> = looks.map(|look| settle.saw(look).is_some()).to_vec();
        assert_eq!(counted, [false, false, false, true, false, false, false, false, true]);
    }
}

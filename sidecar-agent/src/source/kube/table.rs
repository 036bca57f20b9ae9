//! The objects of one kind, as lists and watches tell of them. Pure.

use std::collections::BTreeMap;

/// Namespace (empty where there is none) and name.
pub(super) type Key = (String, String);

/// What a list or a watch tells.
#[derive(Debug)]
pub(super) enum Change<T> {
    /// An object is like this now.
    Put(Key, T),
    /// There is no such object any more, or nothing of it is read.
    Remove(Key),
    /// A list begins.
    Begin,
    /// An object that is in the list.
    Listed(Key, T),
    /// The list is complete.
    End,
}

impl<T> Change<T> {
    /// The same of another type; `None`: the object is none of it.
    pub fn of<U>(self, as_other: impl FnOnce(T) -> Option<U>) -> Option<Change<U>> {
        Some(match self {
            Self::Put(key, object) => Change::Put(key, as_other(object)?),
            Self::Listed(key, object) => Change::Listed(key, as_other(object)?),
            Self::Remove(key) => Change::Remove(key),
            Self::Begin => Change::Begin,
            Self::End => Change::End,
        })
    }
}

/// The objects of one kind.
#[derive(Debug)]
pub(super) struct Table<T> {
    objects: BTreeMap<Key, T>,
    /// Those of the list that is being read. Until its end the ones before stay.
    listing: Option<BTreeMap<Key, T>>,
    /// A list has ended, or there is nothing that could be listed.
    complete: bool,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            listing: None,
            complete: false,
        }
    }
}

impl<T: PartialEq> Table<T> {
    /// Takes what the watch tells. Returns whether anything is different now.
    pub fn apply(&mut self, change: Change<T>) -> bool {
        match change {
            Change::Put(key, object) => {
                let same = self.objects.get(&key) == Some(&object);
                if !same {
                    self.objects.insert(key, object);
                }
                !same
            }
            Change::Remove(key) => self.objects.remove(&key).is_some(),
            Change::Begin => {
                self.listing = Some(BTreeMap::new());
                false
            }
            Change::Listed(key, object) => {
                self.listing.get_or_insert_default().insert(key, object);
                false
            }
            Change::End => {
                let listed = self.listing.take().unwrap_or_default();
                let changed = !self.complete || listed != self.objects;
                self.objects = listed;
                self.complete = true;
                changed
            }
        }
    }

    /// There is no such kind. Returns whether anything is different now.
    pub fn clear(&mut self) -> bool {
        let changed = !self.complete || !self.objects.is_empty();
        *self = Self {
            complete: true,
            ..Self::default()
        };
        changed
    }

    /// Whether it is known what there is.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether a list is being read.
    pub fn is_listing(&self) -> bool {
        self.listing.is_some()
    }

    /// The objects, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Key, &T)> {
        self.objects.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        ("ns".into(), name.into())
    }

    fn names(table: &Table<u8>) -> Vec<(&str, u8)> {
        table
            .iter()
            .map(|((_, name), value)| (&**name, *value))
            .collect()
    }

    fn listed(table: &mut Table<u8>, objects: &[(&str, u8)]) -> bool {
        let mut changed = table.apply(Change::Begin);
        for (name, value) in objects {
            changed |= table.apply(Change::Listed(key(name), *value));
        }
        assert!(!changed, "nothing is seen of a list before its end");
        table.apply(Change::End)
    }

    #[test]
    fn a_new_list_takes_the_place_of_the_old_one_at_its_end() {
        let mut table = Table::default();
        assert!(!table.is_complete());
        assert!(
            listed(&mut table, &[]),
            "it is known now that there is nothing"
        );
        assert!(table.is_complete());
        assert!(listed(&mut table, &[("a", 1), ("b", 1)]));
        assert!(!listed(&mut table, &[("a", 1), ("b", 1)]), "the same");

        table.apply(Change::Begin);
        table.apply(Change::Listed(key("b"), 2));
        assert_eq!(names(&table), [("a", 1), ("b", 1)]);
        assert!(table.is_complete() && table.is_listing());
        // The list failed half way, and begins anew.
        table.apply(Change::Begin);
        table.apply(Change::Listed(key("c"), 3));
        assert!(table.apply(Change::End));
        assert_eq!(names(&table), [("c", 3)]);
    }

    #[test]
    fn only_what_differs_is_a_change() {
        let mut table = Table::default();
        listed(&mut table, &[("a", 1)]);
        assert!(!table.apply(Change::Put(key("a"), 1)));
        assert!(table.apply(Change::Put(key("a"), 2)));
        assert!(!table.apply(Change::Remove(key("b"))));
        assert!(table.apply(Change::Remove(key("a"))));
        assert!(!table.clear());
        listed(&mut table, &[("a", 1)]);
        assert!(table.clear() && table.is_complete());
        assert_eq!(names(&table), []);
    }
}

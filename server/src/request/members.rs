//! The members of an object whose names the client chooses.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::errors::Errors;
use super::escaped;

/// Members of one object: no field takes nearly as many.
const MAX_MEMBERS: usize = 100_000;

/// Members in the order they were written in. Not a map: a name that comes twice is a mistake that
/// a map would hide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members<T>(pub Vec<(String, T)>);

impl<T> Members<T> {
    /// As a map. Names that come twice are errors below `pointer`.
    pub(super) fn into_map(self, pointer: &str, errors: &mut Errors) -> BTreeMap<String, T> {
        let mut map = BTreeMap::new();
        for (name, value) in self.0 {
            match map.entry(name) {
                Entry::Vacant(place) => {
                    place.insert(value);
                }
                Entry::Occupied(first) => {
                    let name = first.key();
                    let at = format!("{pointer}/{}", escaped(name));
                    errors.add(at, format!("`{name}` is there twice: leave one of them out"));
                }
            }
        }
        map
    }
}

impl<T> Default for Members<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Serialize> Serialize for Members<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Members<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Visit(PhantomData))
    }
}

struct Visit<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Visit<T> {
    type Value = Members<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<T>, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            if members.len() == MAX_MEMBERS {
                let bound = format!("an object has at most {MAX_MEMBERS} members");
                return Err(A::Error::custom(bound));
            }
            members.push(member);
        }
        Ok(Members(members))
    }
}

"""Stop words of the languages that the analyzer stems."""

from __future__ import annotations

__all__ = ["QUESTION_WORDS", "STOP_WORDS"]

QUESTION_WORDS = frozenset(["how", "what", "when", "where", "which", "who", "whom", "whose", "why"])
"""English words that ask; rare in reference text, so that they would outweigh what is asked."""
_LISTS = {
    "english": "a an and are as at be but by for if in into is it no not of on or such that "
    "the their then there these they this to was will with",
    "german": "aber als am an auch auf aus bei bis das dass dem den der des die doch durch "
    "ein eine einem einen einer eines er es für hat hatte ich ihr im in ist mit "
    "nach nicht noch nur ob oder sein sich sie sind so über um und uns von vor "
    "war waren was wie wir wird zu zum zur",
    "french": "à au aux avec ce ces cette dans de des du elle en est et été eux il ils je "
    "la le les leur lui ma mais me même mes moi mon ne nos notre nous on ont ou "
    "où par pas pour qu que qui sa se ses son sont sur ta te tes toi ton tu un "
    "une vos votre vous y",
    "spanish": "a al algo como con de del desde donde el él ella ellas ellos en era es esa "
    "ese eso esta este esto fue ha han hay la las le les lo los me mi muy nada ni "
    "no nos o para pero por porque que se ser si sin sobre son su sus también te "
    "tu un una uno y ya yo",
    "italian": "a agli ai al alla alle allo anche che chi ci col come con cui da dagli dai "
    "dal dalla dei del della delle dello di e ed era gli ha hanno ho i il in io "
    "la le lei lo loro lui ma mi ne negli nei nel nella non o per più se si sia "
    "sono su sua sue sugli sul sulla suo tra un una uno",
    "portuguese": "a ao aos as às com como da das de do dos e é ela elas ele eles em era essa "
    "esse esta este eu foi há isso isto já lhe mais mas me na nas não nem no nos "
    "o os ou para pela pelo por que se sem ser seu sua são também te tem um uma",
    "dutch": "aan al als bij dan dat de der deze die dit door een en er had heb heeft het "
    "hij hoe ik in is je kan maar me men met mij na naar niet nog of om omdat "
    "onder ons ook op over te tot u uit van voor was wat we wel wij ze zich zij "
    "zijn zo zou",
    "swedish": "alla att av blev bli där de dem den denna det detta din du efter eller en "
    "ett från för ha hade han har hon hur i in inte jag kan med men mot nu när "
    "och också om på sig sin som så till under upp ut var vi vid är över",
    "danish": "af alle at blev da de dem den denne der det dette dig din du efter eller en "
    "er et for fra ha han har havde hun hvad hvor i ikke jeg kan man med men mod "
    "nu når og også om op på sig sin som så til under ud var vi ved være",
    "norwegian": "alle at av ble bli da de dem den denne der det dette din du eller en enn er "
    "et etter for fra før ha hadde han har hun hva hvor i ikke jeg kan man med "
    "men mot nå når og også om opp på seg sin som så til under ut var ved vi være",
    "russian": "а без бы был была были было в вам вас во вот все вы где да для до его ее ей "
    "если же за и из или им их к как когда ко кто ли мне мы на над не нет но о об "
    "он она они оно от по под при с со так там то тоже у уже что чтобы эта эти "
    "это я",
}
STOP_WORDS = {language: frozenset(words.split()) for language, words in _LISTS.items()}
"""Stop words by the name of the stemmer; ``porter`` uses the English ones."""
